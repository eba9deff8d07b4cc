"""Samples the documents of a split evenly from all sources, independently of the order in which they are read.

The sample has the documents with the smallest digests, up to the requested number of bytes. Digests are divided by
the weight of their source, so that a source has the same share of the sample as of training. Memory: at most 1.25
times the bytes of the sample, whatever the size of the sources.

If a split is much larger than the sample, evenly chosen parts are read and represent the others; only then does the
sample depend on how the text is divided into files.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

from krill.config.schema import DataConfig
from krill.sources.source import Part, SkippedRecords, Source, sample_evenly
from krill.text.cleaning import compose
from krill.text.dedup import SplitName, assign_split, hash_text
from krill.text.documents import DocumentRules

MAX_READ_FACTOR = 10
"""If a split is more than this many times as large as the sample, only some parts are read."""


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
    """The key by which documents are sampled, smallest first."""

    priority: float
    """The second word of the digest, divided by the weight of the source."""
    digest: int
    """The second word itself; the first word determines the split."""


class TextSample:
    """A sample of one split of `limit` bytes of UTF-8 (the last document may exceed it); can be iterated repeatedly.

    The documents are in the order of their digests, whatever the order of the sources.
    """

    def __init__(
        self, source: Source, data: DataConfig, split: SplitName, limit: int, skipped: SkippedRecords
    ) -> None:
        self._source, self._data, self._split, self._limit = source, data, split, limit
        self._rules = DocumentRules(data)
        self._sampled: dict[int, tuple[_SampleKey, SampledText]] = {}
        """By digest; of equal texts the one whose source has the largest weight."""
        self._threshold = _SampleKey(float("inf"), 0)
        """The sample has no larger key."""
        size, max_size = 0, limit + limit // 4
        fraction = data.validation_fraction
        share = fraction if split == "validation" else 1 - fraction
        for part, read_share in _select_parts(
            source.list_parts(), int(MAX_READ_FACTOR * limit / max(share, 1e-6))
        ):
            for key, document in self._iterate_candidates(part, read_share, skipped):
                known = self._sampled.get(key.digest)
                if known is None:
                    size += len(document.content)
                if known is None or key < known[0]:
                    self._sampled[key.digest] = key, document
                if size > max_size:
                    size = self._trim()
                    max_size = size + limit // 4
        self._trim()

    def __iter__(self) -> Iterator[SampledText]:
        for _, document in self._sampled.values():
            yield document

    def iterate_texts(self) -> Iterator[str]:
        """Yields the texts of the documents."""
        for document in self:
            yield document.text

    def _iterate_candidates(
        self, part: Part, read_share: float, skipped: SkippedRecords
    ) -> Iterator[tuple[_SampleKey, SampledText]]:
        """Yields the documents of a part that may be sampled; `read_share`: the share of the source that is read."""
        weight = self._source.weights[part.source]
        for document in self._source.read(part, skipped):
            text = self._rules.clean(document.text)
            content, composed = text.encode(), compose(text)
            digest = hash_text(content if composed is text else composed.encode())
            second = int.from_bytes(digest[8:], "big")
            if second >= weight * 2**64:
                continue  # with a weight below 1, training excludes the same documents
            key = _SampleKey(second * read_share / weight, second)
            if (
                key <= self._threshold
                and assign_split(digest, self._data.validation_fraction) == self._split
                and self._rules.find_dropping_rule(composed) is None
            ):
                yield key, SampledText(content, part.source)

    def _trim(self) -> int:
        """Keeps the smallest keys that reach the limit, in order; returns the size of their documents in bytes."""
        ordered = sorted(self._sampled.values(), key=lambda pair: pair[0])
        ends = [*accumulate(len(document.content) for _, document in ordered)]
        count = next((index for index, end in enumerate(ends, 1) if end >= self._limit), len(ordered))
        if count and ends[count - 1] >= self._limit:
            self._threshold = ordered[count - 1][0]
        self._sampled = {key.digest: (key, document) for key, document in ordered[:count]}
        return ends[count - 1] if count else 0


def _select_parts(parts: list[Part], max_bytes: int) -> Iterator[tuple[Part, float]]:
    """Yields the parts to read, about `max_bytes` in total and at least one per source, and the share of their
    source that is read."""
    total = max(1, sum(part.size for part in parts))
    for source in sorted({part.source for part in parts}):
        candidates = [part for part in parts if part.source == source]
        selected = sample_evenly(candidates, max(1, len(candidates) * max_bytes // total))
        share = sum(part.size for part in selected) / max(1, sum(part.size for part in candidates))
        for part in selected:
            yield part, share or 1.0
