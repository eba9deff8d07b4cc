"""A sample of a split's documents: drawn evenly from all sources, the same in whatever order they are read.

A document is in the sample if its digest is among the smallest ones, as many as have the bytes that were asked for.
A source's weight divides its digests, so that it has the share that it has in training. Memory: a quarter more than
the sample's own bytes, whatever the size of the source.

Of a source much larger than the sample some parts are read, evenly chosen, and stand for the others: there alone the
sample depends on how the text is cut into files.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

from krill.config.schema import Data
from krill.sources.source import Part, Skipped, Source, evenly
from krill.text.dedup import SplitName, digest_of, split_of
from krill.text.documents import Rules

READ_AT_MOST = 10
"""Where a split is more than so many times the sample, an even choice of parts is read."""


class Drawn(NamedTuple):
    """A document of the sample."""

    content: bytes
    """The cleaned text's UTF-8."""
    source: int
    """Index in the source's `names`."""

    @property
    def text(self) -> str:
        """The cleaned text."""
        return self.content.decode()


class _Key(NamedTuple):
    """Documents are drawn by rising keys."""

    place: float
    """The digest's second word, divided by the source's weight."""
    digest: int
    """The second word itself: the first one chooses the split."""


class Sample:
    """Documents of one split, `limit` bytes of UTF-8 (the last one may pass it); iterates any number of times.

    They come in the order of their digests, whatever the order of the source.
    """

    def __init__(self, source: Source, data: Data, split: SplitName, limit: int, skipped: Skipped) -> None:
        self._source, self._data, self._split, self._limit = source, data, split, limit
        self._rules = Rules(data)
        self._drawn: dict[int, tuple[_Key, Drawn]] = {}
        """By digest: of equal texts one, that of the source with the largest weight."""
        self._threshold = _Key(float("inf"), 0)
        """No larger key is in the sample."""
        held, bound = 0, limit + limit // 4
        fraction = data.validation_fraction
        share = fraction if split == "validation" else 1 - fraction
        for part, read in _chosen(source.parts(), int(READ_AT_MOST * limit / max(share, 1e-6))):
            for key, drawn in self._candidates(part, read, skipped):
                known = self._drawn.get(key.digest)
                if known is None:
                    held += len(drawn.content)
                if known is None or key < known[0]:
                    self._drawn[key.digest] = key, drawn
                if held > bound:
                    held = self._cut()
                    bound = held + limit // 4
        self._cut()

    def __iter__(self) -> Iterator[Drawn]:
        for _, drawn in self._drawn.values():
            yield drawn

    def texts(self) -> Iterator[str]:
        """The texts alone."""
        for drawn in self:
            yield drawn.text

    def _candidates(self, part: Part, read: float, skipped: Skipped) -> Iterator[tuple[_Key, Drawn]]:
        """Yield the usable documents of a part that may be in the sample; `read`: the share of its source that is."""
        weight = self._source.weights[part.source]
        for document in self._source.read(part, skipped):
            text = self._rules.clean(document.text)
            content = text.encode()
            digest = digest_of(content)
            second = int.from_bytes(digest[8:], "big")
            if second >= weight * 2**64:
                continue  # of a weight below 1, training leaves out the same ones
            key = _Key(second * read / weight, second)
            if (
                key <= self._threshold
                and split_of(digest, self._data.validation_fraction) == self._split
                and self._rules.dropped_by(text) is None
            ):
                yield key, Drawn(content, part.source)

    def _cut(self) -> int:
        """Keep the smallest keys, in their order, as many as reach the limit; returns the bytes that are held."""
        ordered = sorted(self._drawn.values(), key=lambda pair: pair[0])
        ends = [*accumulate(len(drawn.content) for _, drawn in ordered)]
        count = next((index for index, end in enumerate(ends, 1) if end >= self._limit), len(ordered))
        if count and ends[count - 1] >= self._limit:
            self._threshold = ordered[count - 1][0]
        self._drawn = {key.digest: (key, drawn) for key, drawn in ordered[:count]}
        return ends[count - 1] if count else 0


def _chosen(parts: list[Part], enough: int) -> Iterator[tuple[Part, float]]:
    """The parts to read, of every source some, `enough` bytes in all; and how much of their source they are."""
    total = max(1, sum(part.size for part in parts))
    for source in sorted({part.source for part in parts}):
        own = [part for part in parts if part.source == source]
        some = evenly(own, max(1, len(own) * enough // total))
        read = sum(part.size for part in some) / max(1, sum(part.size for part in own))
        for part in some:
            yield part, read or 1.0
