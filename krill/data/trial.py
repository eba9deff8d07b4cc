"""A trial on a sample: what each rule would drop, with nothing written and no tokenizer needed."""

from __future__ import annotations

from functools import partial
from itertools import islice

from krill.config.schema import Data
from krill.data.progress import dropped_table
from krill.sources.registry import open_source
from krill.sources.source import Skipped, evenly
from krill.text.dedup import Duplicates
from krill.text.documents import Dropped, Rules, usable_documents

DOCUMENTS = 2000
"""So many documents are tried."""
PARTS = 20
"""They come from the beginnings of so many parts, evenly chosen."""


def sample_table(data: Data) -> list[str]:
    """What the rules that look at text keep and drop of a sample, as lines.

    Rules that need tokens or all documents (min_tokens, near duplicates, duplicates elsewhere) are not tried.
    """
    source = open_source(data)
    parts = source.parts()
    chosen = evenly(parts, PARTS)
    dropped, skipped, rules, duplicates = Dropped(), Skipped(), Rules(data), Duplicates()
    kept = tried = 0
    for part in chosen:
        documents = list(islice(source.read(part, skipped), -(-DOCUMENTS // len(chosen))))
        tried += len(documents)
        found = usable_documents(documents, rules, duplicates, dropped, partial(source.spell, part))
        kept += sum(1 for _ in found)
    lines = [f"sample      {tried:,} documents of {len(chosen)} of {len(parts)} parts: {kept:,} kept"]
    lines += dropped_table(dropped.rules, tried)
    lines += [f"  {reason}: {counts['records']:,} records" for reason, counts in skipped.reasons.items()]
    return lines
