"""A sample of a split's documents: drawn evenly from all sources, the same in whatever order they are read.

A document is in the sample if its digest is among the smallest ones, as many as have the bytes that were asked for.
A source's weight divides its digests, so that it has the share that it has in training. Memory: 8 bytes per document
of the sample, twice, whatever the size of the source; it is read once to choose, then whenever the sample is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from krill.config.schema import Data
from krill.sources.source import Document, Part, Skipped, Source, evenly
from krill.text.dedup import SplitName, digest_of, split_of
from krill.text.documents import Rules

READ_AT_MOST = 10
"""Of a source of more than so many times the sample, an even choice of parts is read."""

_LARGEST = 2**64 - 1


class Drawn(NamedTuple):
    """A document of the sample."""

    text: str
    source: int
    """Index in the source's `names`."""


class Sample:
    """Documents of one split, `limit` bytes of UTF-8 (the last one may pass it); iterates any number of times."""

    def __init__(self, source: Source, data: Data, split: SplitName, limit: int, skipped: Skipped) -> None:
        self._source, self._data, self._split = source, data, split
        self._rules = Rules(data)
        parts = source.parts()
        size = sum(part.size for part in parts)
        self._parts = evenly(parts, max(1, len(parts) * READ_AT_MOST * limit // max(1, size)))
        self._threshold = _LARGEST
        self._threshold = self._chosen(limit, skipped)

    def __iter__(self) -> Iterator[Drawn]:
        seen: set[int] = set()
        for key, _, text, part in self._below_threshold(Skipped()):
            if key not in seen:
                seen.add(key)
                yield Drawn(text, part.source)

    def texts(self) -> Iterator[str]:
        """The texts alone."""
        for drawn in self:
            yield drawn.text

    def _chosen(self, limit: int, skipped: Skipped) -> int:
        """The largest key of a document that is in the sample."""
        keys: list[int] = []
        sizes: list[int] = []
        total = 0
        for key, size, _, _ in self._below_threshold(skipped):
            keys.append(key)
            sizes.append(size)
            total += size
            if total >= 2 * limit:
                keys, sizes = _smallest(keys, sizes, limit)
                total = sum(sizes)
                if total >= limit:
                    self._threshold = keys[-1]
        keys, sizes = _smallest(keys, sizes, limit)
        return keys[-1] if sum(sizes) >= limit else self._threshold

    def _below_threshold(self, skipped: Skipped) -> Iterator[tuple[int, int, str, Part]]:
        """Yield (key, bytes, text, part) of the usable documents whose key is not above the threshold."""
        for part in self._parts:
            weight = self._source.weights[part.source]
            for document in self._source.read(part, skipped):
                key, size, text = self._keyed(document, weight)
                if key <= self._threshold and self._rules.dropped_by(text) is None:
                    yield key, size, text, part

    def _keyed(self, document: Document, weight: float) -> tuple[int, int, str]:
        """Key (beyond all where it belongs to the other split), bytes and cleaned text."""
        text = self._rules.clean(document.text)
        content = text.encode()
        digest = digest_of(content)
        if not weight or split_of(digest, self._data.validation_fraction) != self._split:
            return _LARGEST + 1, len(content), text
        key = int.from_bytes(digest[8:], "big")  # the first half chose the split
        return key if weight == 1 else min(int(key / weight), _LARGEST), len(content), text


def _smallest(keys: list[int], sizes: list[int], limit: int) -> tuple[list[int], list[int]]:
    """The smallest keys, each once, rising, and their sizes: as many as reach `limit` bytes together, or all."""
    if not keys:
        return [], []
    distinct, first = np.unique(np.array(keys, np.uint64), return_index=True)
    kept = np.array(sizes, np.int64)[first]
    count = int(np.searchsorted(np.cumsum(kept), limit)) + 1
    return distinct[:count].tolist(), kept[:count].tolist()
