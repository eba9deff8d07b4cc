"""A trial on a sample: what each rule would drop, with nothing written and no tokenizer needed."""

from __future__ import annotations

from functools import partial
from itertools import islice

from krill.config.schema import DataConfig
from krill.data.progress import format_dropped_table
from krill.sources.source import SkippedRecords, Source, sample_evenly
from krill.text.dedup import SeenDigests
from krill.text.documents import DocumentRules, DropStats, iterate_kept_documents

DRY_RUN_DOCUMENTS = 2000
"""So many documents are tried."""
DRY_RUN_PARTS = 20
"""They come from the beginnings of so many parts, evenly chosen."""


def format_dry_run_sample(data: DataConfig, source: Source) -> list[str]:
    """What the rules that look at text keep and drop of a sample, as lines.

    Rules that need tokens or all documents (min_tokens, near duplicates, duplicates elsewhere) are not tried.
    """
    parts = source.list_parts()
    chosen = sample_evenly(parts, DRY_RUN_PARTS)
    dropped, skipped, rules, duplicates = DropStats(), SkippedRecords(), DocumentRules(data), SeenDigests()
    kept = tried = 0
    for part in chosen:
        documents = list(islice(source.read(part, skipped), -(-DRY_RUN_DOCUMENTS // len(chosen))))
        tried += len(documents)
        found = iterate_kept_documents(
            documents, rules, duplicates, dropped, partial(source.describe_location, part)
        )
        kept += sum(1 for _ in found)
    lines = [f"sample      {tried:,} documents of {len(chosen)} of {len(parts)} parts: {kept:,} kept"]
    lines += format_dropped_table(dropped.by_rule, tried)
    lines += [f"  {reason}: {counts['records']:,} records" for reason, counts in skipped.reasons.items()]
    return lines
