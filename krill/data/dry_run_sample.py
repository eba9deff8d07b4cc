"""Applies the rules to a sample for a dry run; writes nothing and needs no tokenizer."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import islice

from krill.config.schema import DataConfig
from krill.data.progress import format_data_hints, format_dropped_table, format_weight_hint
from krill.sources.source import Part, SkippedRecords, Source, sample_evenly
from krill.tables import get_terminal_width
from krill.text.dedup import SeenDigests
from krill.text.documents import DocumentRules, DropStats, iterate_kept_documents

DRY_RUN_DOCUMENTS = 2000
"""Approximate number of documents in the sample."""
DRY_RUN_PARTS = 20
"""Maximum number of parts whose first documents are sampled, evenly spaced."""

MAX_MIX_SOURCES = 10
"""Maximum number of sources whose share is printed."""


def format_dry_run_sample(data: DataConfig, source: Source) -> list[str]:
    """Returns the share of each source, and the lines of a table of what the text rules keep and drop in a sample.

    Rules that need tokens or all documents (min_tokens, max_tokens, near duplicates, duplicates across parts) are not
    applied.
    """
    parts = source.list_parts()
    sampled = sample_evenly(parts, DRY_RUN_PARTS)
    dropped, skipped, rules, duplicates = DropStats(), SkippedRecords(), DocumentRules(data), SeenDigests()
    read_counts = Counter[str]()
    num_kept = 0
    for part in sampled:
        documents = list(islice(source.read(part, skipped), -(-DRY_RUN_DOCUMENTS // len(sampled))))
        kept = iterate_kept_documents(
            documents, rules, duplicates, dropped, read_counts, partial(source.describe_location, part)
        )
        num_kept += sum(1 for _ in kept)
    num_sampled = read_counts["documents"]
    lines = format_mix(source, parts)
    lines += [
        f"sample      {num_sampled:,} documents of {len(sampled)} of {len(parts)} parts: {num_kept:,} kept"
    ]
    lines += format_dropped_table(dropped.by_rule, num_sampled, get_terminal_width(sys.stdout))
    lines += [f"  {reason}: {counts['records']:,} records" for reason, counts in skipped.reasons.items()]
    return lines + format_data_hints(dropped.by_rule, read_counts, data.model_dump())


def format_mix(source: Source, parts: Sequence[Part] | None = None) -> list[str]:
    """Returns a line with the share of each source in the training text, and hints; no line for a single source."""
    if len(source.names) == 1:
        return []
    if parts is None:
        parts = source.list_parts()
    sizes, repeated = [0.0] * len(source.names), 0.0
    for part in parts:
        sizes[part.source] += part.size * source.weights[part.source]
        repeated += part.size * max(0.0, source.weights[part.source] - 1)
    ratio = repeated / max(1, sum(part.size for part in parts))
    ranked = sorted(zip(sizes, source.names, strict=True), key=lambda item: -item[0])
    shares = [f"{name} {100 * size / max(1.0, sum(sizes)):.1f} %" for size, name in ranked[:MAX_MIX_SOURCES]]
    others = f", and {len(ranked) - MAX_MIX_SOURCES} more" if len(ranked) > MAX_MIX_SOURCES else ""
    line = f"mix         {', '.join(shares)}{others} (size x weight)"
    return [line, *format_weight_hint(source.weights, ratio)]
