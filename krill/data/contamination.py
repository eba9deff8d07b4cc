"""Measures contamination: how much of the validation text also occurs in the training text.

A validation token is leaked if it is in an n-gram of tokens that also occurs in the training split, as in the
contamination analyses of GPT-3 (Brown et al. 2020, appendix C: 13-grams) and Llama 2 (Touvron et al. 2023, appendix
A.6, which counts tokens). Exact and near duplicates are removed before; quotations, licenses and templates remain.
An n-gram is within the text of one document; bos and eos are in none.

A large validation split is sampled by taking every k-th document, so memory does not grow with it.

The pass over the training text hashes only every sixth position: an n-gram of 13 tokens contains six anchors of 8
tokens, and one of them begins at such a position wherever the n-gram is. Only n-grams around an anchor that also
occurs in the validation text are compared.

Anchors and n-grams are compared by 64-bit hashes: for 10^10 training tokens against 2^18 validation tokens, the
probability of one false match is 10^-4.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from krill.data.store import Split
from krill.resources import count_cpu_cores
from krill.text.shingles import sort_unique

CONTAMINATION_NGRAM = 13
MAX_SAMPLE_TOKENS = 2**18
"""Approximate maximum number of validation tokens that are examined."""
WHOLE_TEXT_TOKENS = 128
"""Texts of at most this length, such as a sentence, are contaminated only if they occur as a whole."""

_ANCHOR_TOKENS = 8
"""Tokens per anchor; long enough that hardly any two are equal by chance."""
_CHUNK_TOKENS = 2**20
"""Training tokens per work item of a thread."""
_HASH_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def measure_contamination(
    train: Split, validation: Split, ngram: int = CONTAMINATION_NGRAM
) -> dict[str, Any]:
    """Counts the validation tokens in n-grams of `ngram` tokens that also occur in the training split.

    Returns ngram, validation_tokens (without bos and eos), leaked_tokens, documents, and leaked_documents (at least
    half of whose tokens are leaked), all for the examined documents. A document of fewer than `ngram` tokens has no
    n-gram and so no leak. Memory: 150 bytes per examined validation token, at most about 50 MB, and 10 MB per thread
    (60 MB for fully repetitive text).
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


def find_contaminated_texts(
    train: Split, texts: Sequence[np.ndarray], ngram: int = CONTAMINATION_NGRAM
) -> np.ndarray:
    """Returns which texts occur in the training split; bool (texts,).

    `texts`: the tokens of each, with bos and eos. A text of at most WHOLE_TEXT_TOKENS tokens is contaminated if it
    occurs as a whole, a longer one if at least half of its n-grams of `ngram` tokens do. Each length of such short
    texts takes a pass over the split; those for the shortest ones hash the most.
    """
    lengths = np.array([len(text) - 2 for text in texts], np.int64)
    sizes = np.where(lengths <= WHOLE_TEXT_TOKENS, lengths, ngram)
    is_contaminated = np.zeros(len(texts), bool)
    for size in np.unique(sizes[sizes > 0]).tolist():
        chosen = np.flatnonzero(sizes == size)
        ends = np.cumsum(lengths[chosen] + 2)
        stream = np.concatenate([texts[index] for index in chosen.tolist()]).astype(train.dtype)
        counts = lengths[chosen] - size + 1
        begins = ends - lengths[chosen] - 1  # of the text, after bos
        first = np.cumsum(counts) - counts
        starts = np.arange(counts.sum()) + np.repeat(begins - first, counts)
        is_leaked = _find_leaked_ngrams(
            _SampledDocuments(stream, ends.astype(np.uint64)), starts, train, size
        )
        leaked = np.add.reduceat(is_leaked, first, dtype=np.int64)
        is_contaminated[chosen] = 2 * leaked >= counts
    return is_contaminated


@dataclass(frozen=True)
class _SampledDocuments:
    """A sample of the documents of a split, in memory."""

    stream: np.ndarray
    ends: np.ndarray


def _sample_documents(split: Split) -> _SampledDocuments:
    """Returns every k-th document, so that about MAX_SAMPLE_TOKENS tokens remain."""
    step = split.tokens // MAX_SAMPLE_TOKENS + 1
    ends = split.ends.astype(np.int64)
    sampled = np.arange(0, len(ends), step)
    begins = np.append(0, ends)[sampled]
    documents = [split.copy(*span) for span in zip(begins.tolist(), ends[sampled].tolist(), strict=True)]
    stream = np.concatenate([np.zeros(0, split.dtype), *documents])
    return _SampledDocuments(stream, np.cumsum(ends[sampled] - begins).astype(np.uint64))


def _find_leaked_ngrams(
    sample: _SampledDocuments, starts: np.ndarray, train: Split, ngram: int
) -> np.ndarray:
    """Returns which of the sample's n-grams at `starts` (n,) occur in the training split; bool (n,)."""
    if not len(starts):
        return np.zeros(0, bool)
    hashes = _hash_ngrams(sample.stream, starts, ngram)
    grams = _HashSet(hashes)
    length = min(ngram, _ANCHOR_TOKENS)
    anchors = _HashSet(_hash_ngrams(sample.stream, slice(None), length))
    step = ngram - length + 1
    is_leaked = np.zeros(len(grams), bool)

    def search_chunk(positions: range) -> None:
        """Marks the n-grams that contain an anchor beginning at one of `positions`."""
        first = max(0, positions.start - step + 1)
        tokens = train.copy(first, min(positions.stop - 1 + ngram, train.tokens))
        hashes = _hash_ngrams(tokens, slice(positions.start - first, positions.stop - first, step), length)
        hits, _ = anchors.lookup(hashes)
        candidates = (positions.start + step * hits[:, None] - np.arange(step)).ravel()
        candidates = candidates[(candidates >= 0) & (candidates + ngram <= train.tokens)]
        known, indices = grams.lookup(_hash_ngrams(tokens, candidates - first, ngram))
        new = ~is_leaked[indices]
        inside = _is_within_document(train.ends, candidates[known[new]], ngram)
        is_leaked[indices[new][inside]] = True

    chunk = max(1, _CHUNK_TOKENS // step) * step
    last = train.tokens - length + 1
    chunks = [range(start, min(start + chunk, last), step) for start in range(0, last, chunk)]
    with ThreadPoolExecutor(count_cpu_cores()) as threads:
        list(threads.map(search_chunk, chunks))
    leaked = np.zeros(len(hashes), bool)
    known, indices = grams.lookup(hashes)
    leaked[known] = is_leaked[indices]
    return leaked


class _HashSet:
    """A set of hashes, bucketed by their leading bits; most lookups hit an empty bucket."""

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
        """Returns (indices into `hashes` of known hashes, their indices in the set); int64 (known,) each.

        `hashes`: uint64 (n,).
        """
        candidates = np.flatnonzero(self._is_filled[hashes >> self._shift])
        values = hashes[candidates]
        bucket = values >> self._shift
        index, end = self._bucket_starts[bucket], self._bucket_starts[bucket + np.uint64(1)]
        is_equal = self._hashes[index] == values
        while len(rest := np.flatnonzero(~is_equal & (index + 1 < end))):
            index[rest] += 1
            is_equal[rest] = self._hashes[index[rest]] == values[rest]
        return candidates[is_equal], index[is_equal].astype(np.int64)


def _hash_ngrams(tokens: np.ndarray, starts: slice | np.ndarray, length: int) -> np.ndarray:
    """Returns hashes of the n-grams of `length` tokens that begin at `starts`; uint64 (n,).

    Of a slice, only positions with a complete n-gram are used. Mixes eight bytes at a time, like MurmurHash.
    """
    width = 8 // tokens.itemsize
    num_ngrams = len(tokens) - length + 1
    if num_ngrams <= 0:
        return np.zeros(0, np.uint64)
    vector_length = length - length % width  # tokens that are read eight bytes at a time
    hashes: np.ndarray | None = None
    for offset in [*range(0, vector_length, width), *range(vector_length, length)]:
        dtype = np.dtype("<u8") if offset < vector_length else tokens.dtype
        values = np.ndarray((num_ngrams,), dtype, tokens.data, offset * tokens.itemsize, (tokens.itemsize,))
        words = values[starts].astype(np.uint64)
        hashes = words if hashes is None else np.bitwise_xor(hashes, words, out=hashes)
        hashes *= _HASH_MULTIPLIER
        hashes ^= hashes >> np.uint64(32)
    assert hashes is not None
    return hashes


def _is_within_document(ends: np.ndarray, starts: np.ndarray, ngram: int) -> np.ndarray:
    """Returns whether the n-grams at `starts`, int64 (n,), are within the text of one document; bool (n,)."""
    document = np.searchsorted(ends, starts.astype(np.uint64), side="right")
    begins = np.where(document > 0, ends[document - 1], 0).astype(np.int64)
    return (starts > begins) & (starts + ngram < ends[document].astype(np.int64))


def _mark_covered_tokens(starts: np.ndarray, tokens: int, ngram: int) -> np.ndarray:
    """Returns whether each of `tokens` tokens is in an n-gram that begins at one of `starts`; bool (tokens,)."""
    change = np.zeros(tokens + 1, np.int32)
    change[starts] += 1
    change[starts + ngram] -= 1
    return np.cumsum(change[:-1]) > 0
