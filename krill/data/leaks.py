"""Leaks: how much of the validation text stands in the training text, too.

A validation token is leaked if it lies in an n-gram of tokens that also occurs in the training split, as in the
contamination analyses of GPT-3 (Brown et al. 2020, appendix C: 13-grams) and Llama 2 (Touvron et al. 2023, appendix
A.6, where each token counts). Exact and near duplicates are gone before; what is left are quotations, licences,
templates. An n-gram lies within the text of one document; bos and eos belong to none.

Of a large validation split every k-th document is looked at, so memory does not grow with it.

N-grams are compared by 64-bit hashes: of 10^10 training tokens against 10^7 validation tokens, the chance that one
is called leaked that is not is half a per cent.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from krill.data.store import Split
from krill.data.workers import cores
from krill.text.shingles import distinct

NGRAM = 13
LOOKED_AT = 2**18
"""Of more validation tokens about so many are looked at."""

_CHUNK = 2**18
"""Tokens that are hashed at a time: fewer, and the threads wait for Python."""
_STRETCH = 2**20
"""Tokens that a thread takes at a time."""
_BASE = np.uint64(0x9E3779B97F4A7C15)
_LARGEST_TABLE = 24
"""Binary logarithm of the most buckets."""


def leaks(train: Split, validation: Split, ngram: int = NGRAM) -> dict[str, Any]:
    """Count the validation tokens that lie in an n-gram of `ngram` tokens that is in the training split, too.

    Returns ngram, validation_tokens (bos and eos not counted), leaked_tokens, documents, and leaked_documents
    (at least half of whose tokens are leaked), all of the documents that were looked at. A document of fewer than
    `ngram` tokens has no n-gram and so no leak. Memory: 90 bytes per validation token that is looked at, at most
    about 25 MB, and 100 MB of buckets.
    """
    sample = _thinned(validation)
    starts, hashes = _ngrams(sample, ngram)
    shared = _shared(distinct(hashes), train, ngram)
    leaked = _covered(starts[_among(shared, hashes)], sample.tokens, ngram)
    ends = sample.ends.astype(np.int64)
    begins = np.append(0, ends)[:-1]
    documents = np.add.reduceat(leaked, begins, dtype=np.int64) if len(begins) else begins
    lengths = ends - begins - 2
    return {
        "ngram": ngram,
        "validation_tokens": int(lengths.sum()),
        "leaked_tokens": int(documents.sum()),
        "documents": sample.documents,
        "leaked_documents": int(np.count_nonzero((documents > 0) & (2 * documents >= lengths))),
    }


@dataclass(frozen=True)
class _Thinned:
    """Some documents of a split, in memory."""

    stream: np.ndarray
    ends: np.ndarray

    @property
    def documents(self) -> int:
        return len(self.ends)

    @property
    def tokens(self) -> int:
        return len(self.stream)

    def copy(self, start: int, stop: int) -> np.ndarray:
        return self.stream[start:stop]


def _thinned(split: Split) -> Split | _Thinned:
    """Every k-th document, so that about LOOKED_AT tokens remain."""
    every = split.tokens // LOOKED_AT + 1
    if every == 1:
        return split
    ends = split.ends.astype(np.int64)
    chosen = np.arange(0, len(ends), every)
    begins = np.append(0, ends)[chosen]
    documents = [split.copy(*span) for span in zip(begins.tolist(), ends[chosen].tolist(), strict=True)]
    return _Thinned(np.concatenate(documents), np.cumsum(ends[chosen] - begins).astype(np.uint64))


def _ngrams(split: Split | _Thinned, ngram: int) -> tuple[np.ndarray, np.ndarray]:
    """All n-grams of the split: where each begins, int64 (n,), and its hash, uint64 (n,)."""
    starts, hashes = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)]
    for first, chunk in _hashed(split, ngram, range(split.tokens)):
        inside = _inside(split, first + np.arange(len(chunk)), ngram)
        starts.append(first + np.flatnonzero(inside))
        hashes.append(chunk[inside])
    return np.concatenate(starts), np.concatenate(hashes)


def _shared(hashes: np.ndarray, train: Split, ngram: int) -> np.ndarray:
    """Those of `hashes` (uint64, rising, distinct) that an n-gram of the training split has."""
    found = np.zeros(len(hashes), bool)
    if not len(hashes):
        return hashes
    # Bucketed by their first bits: most n-grams fall into an empty bucket, few into one of more than one hash.
    bits = min(_LARGEST_TABLE, max(8, len(hashes).bit_length() + 4))
    shift = np.uint64(64 - bits)
    sizes = np.bincount((hashes >> shift).astype(np.int64), minlength=2**bits)
    filled, edges = sizes > 0, np.append(0, np.cumsum(sizes)).astype(np.int32)

    def look(stretch: range) -> None:
        for first, chunk in _hashed(train, ngram, stretch):
            maybe = np.flatnonzero(filled[chunk >> shift])
            wanted = chunk[maybe]
            bucket = wanted >> shift
            place, end = edges[bucket], edges[bucket + np.uint64(1)]
            same = hashes[place] == wanted
            while len(on := np.flatnonzero(~same & (place + 1 < end))):
                place[on] += 1
                same[on] = hashes[place[on]] == wanted[on]
            inside = _inside(train, first + maybe[same], ngram)
            found[place[same][inside]] = True

    with ThreadPoolExecutor(cores()) as threads:
        list(threads.map(look, _stretches(train, ngram)))
    return hashes[found]


def _among(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Whether each `wanted` is one of the rising `values`; bool (n,)."""
    return np.searchsorted(values, wanted, "right") > np.searchsorted(values, wanted, "left")


def _stretches(split: Split, ngram: int) -> list[range]:
    """The beginnings of the split's n-grams, in pieces for the threads."""
    return [
        range(first, min(first + _STRETCH, split.tokens))
        for first in range(0, split.tokens - ngram + 1, _STRETCH)
    ]


def _hashed(split: Split | _Thinned, ngram: int, beginnings: range) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first, hashes uint64 (n,)): hashes[i] is that of the tokens from first + i on, across documents too.

    Differences of a running polynomial (Karp & Rabin 1987), so the cost does not depend on `ngram`.
    """
    size = _CHUNK + ngram
    powers = np.cumprod(np.full(size + 1, _BASE), dtype=np.uint64)
    stop = min(beginnings.stop, split.tokens - ngram + 1)
    for first in range(beginnings.start, stop, _CHUNK):
        tokens = split.copy(first, min(first + _CHUNK, stop) + ngram - 1)
        count = len(tokens) - ngram + 1
        running = np.zeros(len(tokens) + 1, np.uint64)
        np.cumsum(tokens * powers[: len(tokens)], out=running[1:])
        # Moved to one place, whatever their own: equal n-grams get equal hashes.
        yield first, (running[ngram:] - running[:-ngram]) * powers[size : size - count : -1]


def _inside(split: Split | _Thinned, starts: np.ndarray, ngram: int) -> np.ndarray:
    """Whether the n-grams that begin at `starts` int64 (n,) lie in the text of one document; bool (n,)."""
    ends = split.ends
    document = np.searchsorted(ends, starts.astype(np.uint64), side="right")
    begins = np.where(document > 0, ends[document - 1], 0).astype(np.int64)
    return (starts > begins) & (starts + ngram < ends[document].astype(np.int64))


def _covered(starts: np.ndarray, tokens: int, ngram: int) -> np.ndarray:
    """Whether each of `tokens` tokens lies in an n-gram that begins at one of `starts`; bool (tokens,)."""
    change = np.zeros(tokens + 1, np.int32)
    change[starts] += 1
    change[starts + ngram] -= 1
    return np.cumsum(change[:-1]) > 0
