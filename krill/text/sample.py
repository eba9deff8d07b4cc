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

from krill.config.schema import DataConfig
from krill.sources.source import Part, SkippedRecords, Source, sample_evenly
from krill.text.dedup import SplitName, assign_split, hash_text
from krill.text.documents import DocumentRules

MAX_READ_FACTOR = 10
"""Where a split is more than so many times the sample, an even choice of parts is read."""


class SampledText(NamedTuple):
    """A document of the sample."""

    content: bytes
    """The cleaned text's UTF-8."""
    source: int
    """Index in the source's `names`."""

    @property
    def text(self) -> str:
        """The cleaned text."""
        return self.content.decode()


class _SampleKey(NamedTuple):
    """Documents are drawn by rising keys."""

    priority: float
    """The digest's second word, divided by the source's weight."""
    digest: int
    """The second word itself: the first one chooses the split."""


class TextSample:
    """Documents of one split, `limit` bytes of UTF-8 (the last one may pass it); iterates any number of times.

    They come in the order of their digests, whatever the order of the source.
    """

    def __init__(
        self, source: Source, data: DataConfig, split: SplitName, limit: int, skipped: SkippedRecords
    ) -> None:
        self._source, self._data, self._split, self._limit = source, data, split, limit
        self._rules = DocumentRules(data)
        self._sampled: dict[int, tuple[_SampleKey, SampledText]] = {}
        """By digest: of equal texts one, that of the source with the largest weight."""
        self._threshold = _SampleKey(float("inf"), 0)
        """No larger key is in the sample."""
        held, bound = 0, limit + limit // 4
        fraction = data.validation_fraction
        share = fraction if split == "validation" else 1 - fraction
        for part, read in _select_parts(source.list_parts(), int(MAX_READ_FACTOR * limit / max(share, 1e-6))):
            for key, drawn in self._iterate_candidates(part, read, skipped):
                known = self._sampled.get(key.digest)
                if known is None:
                    held += len(drawn.content)
                if known is None or key < known[0]:
                    self._sampled[key.digest] = key, drawn
                if held > bound:
                    held = self._trim()
                    bound = held + limit // 4
        self._trim()

    def __iter__(self) -> Iterator[SampledText]:
        for _, drawn in self._sampled.values():
            yield drawn

    def iterate_texts(self) -> Iterator[str]:
        """The texts alone."""
        for drawn in self:
            yield drawn.text

    def _iterate_candidates(
        self, part: Part, read: float, skipped: SkippedRecords
    ) -> Iterator[tuple[_SampleKey, SampledText]]:
        """Yield the usable documents of a part that may be in the sample; `read`: the share of its source that is."""
        weight = self._source.weights[part.source]
        for document in self._source.read(part, skipped):
            text = self._rules.clean(document.text)
            content = text.encode()
            digest = hash_text(content)
            second = int.from_bytes(digest[8:], "big")
            if second >= weight * 2**64:
                continue  # of a weight below 1, training leaves out the same ones
            key = _SampleKey(second * read / weight, second)
            if (
                key <= self._threshold
                and assign_split(digest, self._data.validation_fraction) == self._split
                and self._rules.find_dropping_rule(text) is None
            ):
                yield key, SampledText(content, part.source)

    def _trim(self) -> int:
        """Keep the smallest keys, in their order, as many as reach the limit; returns the bytes that are held."""
        ordered = sorted(self._sampled.values(), key=lambda pair: pair[0])
        ends = [*accumulate(len(drawn.content) for _, drawn in ordered)]
        count = next((index for index, end in enumerate(ends, 1) if end >= self._limit), len(ordered))
        if count and ends[count - 1] >= self._limit:
            self._threshold = ordered[count - 1][0]
        self._sampled = {key.digest: (key, drawn) for key, drawn in ordered[:count]}
        return ends[count - 1] if count else 0


def _select_parts(parts: list[Part], enough: int) -> Iterator[tuple[Part, float]]:
    """The parts to read, of every source some, `enough` bytes in all; and how much of their source they are."""
    total = max(1, sum(part.size for part in parts))
    for source in sorted({part.source for part in parts}):
        own = [part for part in parts if part.source == source]
        some = sample_evenly(own, max(1, len(own) * enough // total))
        read = sum(part.size for part in some) / max(1, sum(part.size for part in own))
        for part in some:
            yield part, read or 1.0
