"""Counts of n-grams in a training text, and the unigram and trigram models beside which a task's score is read.

What a trigram model solves can be solved by repeating frequent phrases, and shows nothing about grammar.

The models are over tokens and interpolate (Jelinek and Mercer 1980): the trigram's relative frequency, the bigram's,
and the unigram's with one added to each count, with fixed weights; a context that never occurs leaves its weight to
the shorter one. Only n-grams of the scored sequences are counted, so that memory does not grow with the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from krill.data.store import Split
from krill.evaluation.token_sequence import TokenSequence

WEIGHTS = (0.1, 0.3, 0.6)
"""The weights of the unigram, the bigram and the trigram."""
MAX_TOKENS = 2**26
"""Number of tokens that are counted, in equal pieces over the whole text."""
_CHUNK_TOKENS = 2**20
_MIN_PIECES = 64
"""Number of pieces that are counted of a longer text, whose neighboring documents are often alike."""
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""Odd, so that n-grams have hashes of 64 bits; two of 10⁷ n-grams have the same one with a probability of 3e-6."""
_TABLE_BITS = (16, 24)
"""Log2 of the smallest and the largest size of the table in which most n-grams of the text are looked up."""


class NgramCounts:
    """How often the n-grams of some sequences occur in a text, for n up to `order`."""

    def __init__(
        self,
        split: Split,
        vocab_size: int,
        streams: Sequence[np.ndarray],
        order: int = 3,
        max_tokens: int = MAX_TOKENS,
    ):
        """Counts in `split`. `streams`: the sequences, integers (tokens,). `max_tokens`: of a longer text, about as
        many tokens are counted."""
        self.vocab_size, self.order = vocab_size, order
        self.unigrams = np.zeros(vocab_size, np.int64)
        wanted: list[list[np.ndarray]] = [[] for _ in range(2, order + 1)]
        for stream in streams:
            for hashes, parts in zip(_hash_all(stream, order), wanted, strict=True):
                parts.append(hashes)
        self._keys = [np.unique(np.concatenate([np.zeros(0, np.uint64), *parts])) for parts in wanted]
        self._counts = [np.zeros(len(keys), np.int64) for keys in self._keys]
        tables = [_build_table(keys) for keys in self._keys]
        for start, stop in _choose_pieces(split.tokens, max_tokens):
            tokens = split.copy(start, min(stop + order - 1, split.tokens))
            count = stop - start
            self.unigrams += np.bincount(tokens[:count], minlength=vocab_size)[:vocab_size]
            for index, hashes in enumerate(_hash_all(tokens, order)):
                keys, (table, shift) = self._keys[index], tables[index]
                hashes = hashes[:count]
                hashes = hashes[table[(hashes * _MULTIPLIER) >> shift]]
                indices = np.searchsorted(keys, hashes)
                known = keys[np.minimum(indices, len(keys) - 1)] == hashes if len(keys) else indices < 0
                self._counts[index] += np.bincount(indices[known], minlength=len(keys))
        self.tokens = int(self.unigrams.sum())

    def count(self, ids: np.ndarray, length: int) -> np.ndarray:
        """Returns how often each n-gram of `length` tokens of one of the sequences occurs; (tokens - length + 1,)."""
        if length == 1:
            return self.unigrams[ids]
        keys = self._keys[length - 2]
        *_, hashes = _hash_all(ids, length)
        return self._counts[length - 2][np.searchsorted(keys, hashes)]

    def score(self, sequence: TokenSequence, order: int) -> float:
        """Returns the logprob of the scored tokens with the model of n-grams up to `order`, 1 or 3."""
        ids = np.array(sequence.ids, np.int64)
        begin = len(ids) - sequence.num_scored
        probabilities = (self.unigrams[ids] + 1) / (self.tokens + self.vocab_size)
        weights, total = np.full(len(ids), WEIGHTS[0]), WEIGHTS[0] * probabilities
        if order == 1:
            return float(np.log(probabilities[begin:]).sum())
        for length in (2, 3):
            counts, contexts = self.count(ids, length), self.count(ids, length - 1)[: len(ids) - length + 1]
            known = np.flatnonzero(contexts)
            weight = WEIGHTS[length - 1]
            total[known + length - 1] += weight * counts[known] / contexts[known]
            weights[known + length - 1] += weight
        return float(np.log((total / weights)[begin:]).sum())


def _hash_all(tokens: np.ndarray, order: int) -> Iterator[np.ndarray]:
    """Yields the hash of each n-gram, for each n from 2 to `order`; uint64 (tokens - n + 1,)."""
    values = tokens.astype(np.uint64) + np.uint64(1)
    hashes = values
    for length in range(2, order + 1):
        hashes = hashes[: max(0, len(tokens) - length + 1)] * _MULTIPLIER + values[length - 1 :]
        yield hashes


def _build_table(keys: np.ndarray) -> tuple[np.ndarray, np.uint64]:
    """Returns a table that is true where one of the keys is, and the shift that gives a key's index in it.

    A look-up takes a tenth of the time of a search, and few n-grams of a text are among the keys.
    """
    bits = min(max(_TABLE_BITS[0], len(keys).bit_length() + 3), _TABLE_BITS[1])
    table, shift = np.zeros(2**bits, bool), np.uint64(64 - bits)
    table[(keys * _MULTIPLIER) >> shift] = True
    return table, shift


def _choose_pieces(tokens: int, max_tokens: int) -> list[tuple[int, int]]:
    """Returns spans of the text: all of it, or evenly spaced ones of about `max_tokens` together."""
    if tokens <= max_tokens:
        return [(start, min(start + _CHUNK_TOKENS, tokens)) for start in range(0, tokens, _CHUNK_TOKENS)]
    size = min(max(max_tokens // _MIN_PIECES, 2**10), max_tokens, _CHUNK_TOKENS)
    count = max(1, max_tokens // size)
    return [(start, start + size) for start in (np.arange(count) * tokens // count).tolist()]
