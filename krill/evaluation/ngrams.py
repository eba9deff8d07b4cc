"""Unigram and trigram models of a training text, beside which the score of a model is read.

What a trigram model solves can be solved by repeating frequent phrases, and shows nothing about grammar.

The models are over tokens and interpolate (Jelinek and Mercer 1980): the trigram's relative frequency, the bigram's,
and the unigram's with one added to each count, with fixed weights; a context that never occurs leaves its weight to
the shorter one. Only n-grams of the scored sequences are counted, so that memory does not grow with the text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from krill.data.store import Split
from krill.evaluation.token_scorer import TokenSequence

WEIGHTS = (0.1, 0.3, 0.6)
"""Of the unigram, the bigram and the trigram."""
MAX_TOKENS = 2**26
"""Number of tokens that are counted, in as many equal pieces as needed over the whole text."""
_CHUNK_TOKENS = 2**22


class NgramCounts:
    """How often the n-grams, n up to 3, of some sequences occur in a text."""

    def __init__(self, split: Split, vocab_size: int, sequences: Sequence[TokenSequence]):
        self.vocab_size = vocab_size
        streams = [np.array(item.ids, np.int64) for item in sequences]
        wanted = [
            np.unique(np.concatenate([_hash(ids, length, vocab_size) for ids in streams]))
            for length in (2, 3)
        ]
        self.unigrams = np.zeros(vocab_size, np.int64)
        self._keys, self._counts = wanted, [np.zeros(len(keys), np.int64) for keys in wanted]
        for start, stop in _choose_pieces(split.tokens):
            tokens = split.copy(start, min(stop + 2, split.tokens)).astype(np.int64)
            count = stop - start
            self.unigrams += np.bincount(tokens[:count], minlength=vocab_size)[:vocab_size]
            for order, keys in enumerate(self._keys):
                hashes = _hash(tokens, order + 2, vocab_size)[:count]
                places = np.searchsorted(keys, hashes)
                known = (places < len(keys)) & (keys[np.minimum(places, len(keys) - 1)] == hashes)
                self._counts[order] += np.bincount(places[known], minlength=len(keys))
        self.tokens = int(self.unigrams.sum())

    def score(self, sequence: TokenSequence, order: int) -> float:
        """Returns the logprob of the scored tokens with the model of n-grams up to `order`, 1 or 3."""
        ids = np.array(sequence.ids, np.int64)
        begin = len(ids) - sequence.num_scored
        probabilities = (self.unigrams[ids] + 1) / (self.tokens + self.vocab_size)
        weights, total = np.full(len(ids), WEIGHTS[0]), WEIGHTS[0] * probabilities
        if order == 1:
            return float(np.log(probabilities[begin:]).sum())
        for length, context_counts in ((2, self.unigrams[ids]), (3, self._count(ids, 2))):
            counts, contexts = self._count(ids, length), context_counts[: len(ids) - length + 1]
            known = np.flatnonzero(contexts)
            weight = WEIGHTS[length - 1]
            total[known + length - 1] += weight * counts[known] / contexts[known]
            weights[known + length - 1] += weight
        return float(np.log((total / weights)[begin:]).sum())

    def _count(self, ids: np.ndarray, length: int) -> np.ndarray:
        keys, hashes = self._keys[length - 2], _hash(ids, length, self.vocab_size)
        return self._counts[length - 2][np.searchsorted(keys, hashes)]


def _hash(tokens: np.ndarray, length: int, vocab_size: int) -> np.ndarray:
    """Returns a number for each n-gram of `length` tokens; int64 (tokens - length + 1,)."""
    count = max(0, len(tokens) - length + 1)
    values = np.zeros(count, np.int64)
    for offset in range(length):
        values = values * vocab_size + tokens[offset : offset + count]
    return values


def _choose_pieces(tokens: int) -> list[tuple[int, int]]:
    """Returns spans of the text, all of it or about MAX_TOKENS spread evenly."""
    starts = range(0, tokens, _CHUNK_TOKENS)
    step = max(1, -(-tokens // MAX_TOKENS))
    return [(start, min(start + _CHUNK_TOKENS, tokens)) for start in starts][::step]
