"""Leaks: how much of the validation text stands in the training text, too.

A validation token is leaked if it lies in an n-gram of tokens that also occurs in the training split, as in the
contamination analyses of GPT-3 (Brown et al. 2020, appendix C: 13-grams) and Llama 2 (Touvron et al. 2023, appendix
A.6, where each token counts). Exact and near duplicates are gone before; what is left are quotations, licences,
templates. An n-gram lies within the text of one document; bos and eos belong to none.

Of a large validation split every k-th document is looked at, so memory does not grow with it.

A pass over the training text looks at every sixth place only: an n-gram of 13 tokens holds six runs of 8, and one
of them begins there, wherever it lies. What has such a run of the validation text is looked at more closely.

Runs are compared by 64-bit hashes: of 10^10 training tokens against 2^18 validation tokens, the chance that one is
called leaked that is not is one in ten thousand.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from krill.data.store import Split
from krill.data.worker_pool import count_cpu_cores
from krill.text.shingles import sort_unique

CONTAMINATION_NGRAM = 13
MAX_SAMPLE_TOKENS = 2**18
"""Of more validation tokens about so many are looked at."""

_ANCHOR_TOKENS = 8
"""Tokens of the runs that are looked for first: hardly any two are alike by chance."""
_CHUNK_TOKENS = 2**20
"""Tokens that a thread takes at a time."""
_HASH_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def measure_contamination(
    train: Split, validation: Split, ngram: int = CONTAMINATION_NGRAM
) -> dict[str, Any]:
    """Count the validation tokens that lie in an n-gram of `ngram` tokens that is in the training split, too.

    Returns ngram, validation_tokens (bos and eos not counted), leaked_tokens, documents, and leaked_documents
    (at least half of whose tokens are leaked), all of the documents that were looked at. A document of fewer than
    `ngram` tokens has no n-gram and so no leak. Memory: 150 bytes per validation token that is looked at, at most
    about 50 MB, and 10 MB a thread (60 where all is alike).
    """
    sample = _sample_documents(validation)
    starts = np.arange(max(0, len(sample.stream) - ngram + 1))
    starts = starts[_is_within_document(sample.ends, starts, ngram)]
    leaked = _mark_covered_tokens(
        starts[_find_leaked_ngrams(sample, starts, train, ngram)], len(sample.stream), ngram
    )
    ends = sample.ends.astype(np.int64)
    begins = np.append(0, ends)[:-1]
    documents = np.add.reduceat(leaked, begins, dtype=np.int64) if len(begins) else begins
    lengths = ends - begins - 2
    return {
        "ngram": ngram,
        "validation_tokens": int(lengths.sum()),
        "leaked_tokens": int(documents.sum()),
        "documents": len(ends),
        "leaked_documents": int(np.count_nonzero((documents > 0) & (2 * documents >= lengths))),
    }


@dataclass(frozen=True)
class _SampledDocuments:
    """Some documents of a split, in memory."""

    stream: np.ndarray
    ends: np.ndarray


def _sample_documents(split: Split) -> _SampledDocuments:
    """Every k-th document, so that about LOOKED_AT tokens remain."""
    every = split.tokens // MAX_SAMPLE_TOKENS + 1
    ends = split.ends.astype(np.int64)
    chosen = np.arange(0, len(ends), every)
    begins = np.append(0, ends)[chosen]
    documents = [split.copy(*span) for span in zip(begins.tolist(), ends[chosen].tolist(), strict=True)]
    stream = np.concatenate([np.zeros(0, split.dtype), *documents])
    return _SampledDocuments(stream, np.cumsum(ends[chosen] - begins).astype(np.uint64))


def _find_leaked_ngrams(
    sample: _SampledDocuments, starts: np.ndarray, train: Split, ngram: int
) -> np.ndarray:
    """Which of the sample's n-grams, which begin at `starts`, the training split has; bool (n,)."""
    if not len(starts):
        return np.zeros(0, bool)
    hashes = _hash_ngrams(sample.stream, starts, ngram)
    grams = _HashSet(hashes)
    length = min(ngram, _ANCHOR_TOKENS)
    anchors = _HashSet(_hash_ngrams(sample.stream, slice(None), length))
    step = ngram - length + 1
    found = np.zeros(len(grams), bool)

    def look(places: range) -> None:
        """Look at the runs that begin at `places`."""
        first = max(0, places.start - step + 1)
        tokens = train.copy(first, min(places.stop - 1 + ngram, train.tokens))
        runs = _hash_ngrams(tokens, slice(places.start - first, places.stop - first, step), length)
        hits, _ = anchors.lookup(runs)
        around = (places.start + step * hits[:, None] - np.arange(step)).ravel()
        around = around[(around >= 0) & (around + ngram <= train.tokens)]
        same, which = grams.lookup(_hash_ngrams(tokens, around - first, ngram))
        new = ~found[which]
        inside = _is_within_document(train.ends, around[same[new]], ngram)
        found[which[new][inside]] = True

    stretch = max(1, _CHUNK_TOKENS // step) * step
    last = train.tokens - length + 1
    stretches = [range(place, min(place + stretch, last), step) for place in range(0, last, stretch)]
    with ThreadPoolExecutor(count_cpu_cores()) as threads:
        list(threads.map(look, stretches))
    leaked = np.zeros(len(hashes), bool)
    same, which = grams.lookup(hashes)
    leaked[same] = found[which]
    return leaked


class _HashSet:
    """A set of hashes, bucketed by their first bits: of what is looked up, most falls into an empty bucket."""

    def __init__(self, hashes: np.ndarray) -> None:
        self._hashes = sort_unique(hashes)
        bits = len(self._hashes).bit_length() + 2
        self._shift = np.uint64(64 - bits)
        sizes = np.bincount((self._hashes >> self._shift).astype(np.int64), minlength=2**bits)
        self._is_filled, self._bucket_starts = sizes > 0, np.zeros(2**bits + 1, np.int32)
        np.cumsum(sizes, out=self._bucket_starts[1:])

    def __len__(self) -> int:
        return len(self._hashes)

    def lookup(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(index of each that is known, its place in the set) of `hashes` uint64 (n,); both int64 (known,)."""
        maybe = np.flatnonzero(self._is_filled[hashes >> self._shift])
        wanted = hashes[maybe]
        bucket = wanted >> self._shift
        place, end = self._bucket_starts[bucket], self._bucket_starts[bucket + np.uint64(1)]
        same = self._hashes[place] == wanted
        while len(on := np.flatnonzero(~same & (place + 1 < end))):
            place[on] += 1
            same[on] = self._hashes[place[on]] == wanted[on]
        return maybe[same], place[same].astype(np.int64)


def _hash_ngrams(tokens: np.ndarray, starts: slice | np.ndarray, length: int) -> np.ndarray:
    """Hashes of the runs of `length` tokens that begin at `starts`; uint64 (n,).

    A slice stands for those of its places where a whole run begins. Eight bytes at a time, as MurmurHash does it.
    """
    width = 8 // tokens.itemsize
    runs = len(tokens) - length + 1
    if runs <= 0:
        return np.zeros(0, np.uint64)
    whole = length - length % width
    hashes: np.ndarray | None = None
    for offset in [*range(0, whole, width), *range(whole, length)]:
        kind = np.dtype("<u8") if offset < whole else tokens.dtype
        every = np.ndarray((runs,), kind, tokens.data, offset * tokens.itemsize, (tokens.itemsize,))
        piece = every[starts].astype(np.uint64)
        hashes = piece if hashes is None else np.bitwise_xor(hashes, piece, out=hashes)
        hashes *= _HASH_MULTIPLIER
        hashes ^= hashes >> np.uint64(32)
    assert hashes is not None
    return hashes


def _is_within_document(ends: np.ndarray, starts: np.ndarray, ngram: int) -> np.ndarray:
    """Whether the n-grams that begin at `starts` int64 (n,) lie in the text of one document; bool (n,)."""
    document = np.searchsorted(ends, starts.astype(np.uint64), side="right")
    begins = np.where(document > 0, ends[document - 1], 0).astype(np.int64)
    return (starts > begins) & (starts + ngram < ends[document].astype(np.int64))


def _mark_covered_tokens(starts: np.ndarray, tokens: int, ngram: int) -> np.ndarray:
    """Whether each of `tokens` tokens lies in an n-gram that begins at one of `starts`; bool (tokens,)."""
    change = np.zeros(tokens + 1, np.int32)
    change[starts] += 1
    change[starts + ngram] -= 1
    return np.cumsum(change[:-1]) > 0
