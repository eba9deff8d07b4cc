"""Computes the loss of a 5-gram model of the training text on the validation text, beside which a loss is read.

A model above it has learned less from its text than a table of its phrases. The model interpolates the relative
frequencies of 1- to 5-grams (Jelinek and Mercer 1980): the weight of each order depends on how often its context
occurs, by powers of two, and is fitted by expectation maximization (Chen and Goodman 1999, section 2.3). The weights
of one half of the validation text are those of the other half, so that none is fitted to what it predicts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from krill.data.store import Split, Store
from krill.evaluation.ngrams import MAX_TOKENS, NgramCounts

ORDER = 5
"""Number of tokens of the longest n-grams."""
MAX_SCORED_TOKENS = 2**20
"""Number of tokens of the validation text that are scored: 100 MB of memory."""
MIN_COUNTED_TOKENS = 2**20
"""The smallest part of a training text that is counted instead of all of it."""
MAX_SHARE = 0.03
"""The part of a run's time that a baseline may take."""
FIXED_SECONDS, SECONDS_PER_COUNTED_TOKEN, SECONDS_PER_SCORED_TOKEN = 3e-3, 5e-7, 5e-6
"""The time of a baseline, about: measured on one core of a server CPU, rounded up (docs/training.md#the-verdict)."""
_EM_STEPS = 10
_BUCKETS = 32


@dataclass(frozen=True)
class NgramBaseline:
    """The loss of an n-gram model."""

    loss: float
    """Nats per token, eos included, as `eval_loss`."""
    order: int
    counted_tokens: int
    """Tokens of the training text that were counted."""
    scored_tokens: int
    """Tokens of the validation text that were predicted."""


def compute_ngram_baseline(
    store: Store, documents: np.ndarray | None, max_tokens: int, order: int = ORDER
) -> NgramBaseline:
    """Returns the loss on the validation text of `store` after counting at most about `max_tokens` training tokens.

    `documents`: the indices of the documents of a validation; None: all of them. Of a long validation text, evenly
    spaced documents are scored.
    """
    streams = _read_documents(store.validation, documents)
    stream = np.concatenate(streams)
    position = np.concatenate([np.arange(len(ids)) for ids in streams])
    counts = NgramCounts(store.train, store.vocab_size, [stream], order, max_tokens)
    nats = -np.log(_predict(counts, stream, position, store))
    return NgramBaseline(float(nats.mean()), order, counts.tokens, len(nats))


def _read_documents(split: Split, documents: np.ndarray | None) -> list[np.ndarray]:
    """Returns the tokens of documents, of at most about MAX_SCORED_TOKENS."""
    ends = split.ends.astype(np.int64)
    chosen = np.arange(len(ends)) if documents is None else documents
    starts = np.concatenate(([0], ends[:-1]))[chosen]
    ends = ends[chosen]
    step = max(1, -(-int((ends - starts).sum()) // MAX_SCORED_TOKENS))
    return [
        split.copy(start, stop)
        for start, stop in zip(starts[::step].tolist(), ends[::step].tolist(), strict=True)
    ]


def _predict(counts: NgramCounts, stream: np.ndarray, position: np.ndarray, store: Store) -> np.ndarray:
    """Returns the probability of each token but bos; float64. `position`: of each token within its document."""
    unigrams = counts.unigrams.copy()
    # bos is never predicted. Where one token is both bos and eos, half of its occurrences are bos.
    unigrams[store.bos_id] = unigrams[store.bos_id] // 2 if store.bos_id == store.eos_id else 0
    probabilities = (unigrams[stream] + 1) / (unigrams.sum() + counts.vocab_size)
    block = np.arange(len(stream)) // max(1, len(stream) // 16)
    for length in range(2, counts.order + 1):
        contexts = counts.count(stream, length - 1)[: max(0, len(stream) - length + 1)]
        target = np.arange(length - 1, length - 1 + len(contexts))
        is_known = (contexts > 0) & (position[target] >= length - 1)
        target, contexts = target[is_known], contexts[is_known]
        frequencies = counts.count(stream, length)[is_known] / contexts
        bucket = np.minimum(np.log2(contexts).astype(np.int64), _BUCKETS - 1)
        is_odd = block[target] % 2 == 1
        weights = np.zeros(len(target))
        for half in (is_odd, ~is_odd):
            fitted = _fit_weights(frequencies[~half], probabilities[target[~half]], bucket[~half])
            weights[half] = fitted[bucket[half]]
        probabilities[target] += weights * (frequencies - probabilities[target])
    return probabilities[position > 0]


def _fit_weights(frequencies: np.ndarray, lower: np.ndarray, bucket: np.ndarray) -> np.ndarray:
    """Returns the weight of `frequencies` beside the probabilities `lower` in each bucket, by maximum likelihood.

    Each bucket has one more token that the frequencies predict and one that they do not, for buckets with few.
    """
    weights = np.full(_BUCKETS, 0.5)
    sizes = np.bincount(bucket, minlength=_BUCKETS) + 2
    for _ in range(_EM_STEPS):
        share = weights[bucket] * frequencies
        posterior = share / (share + (1 - weights[bucket]) * lower)
        weights = (np.bincount(bucket, posterior, _BUCKETS) + 1) / sizes
    return weights


def choose_counted_tokens(
    store: Store, documents: np.ndarray | None, max_tokens: int, run_seconds: float
) -> int:
    """Returns how many training tokens to count, at most `max_tokens`: all, or a power of two in MAX_SHARE of the
    time of a run that took `run_seconds`. 0: not enough for a model of the text.

    `documents`: the indices of the documents of a validation; None: all of them.
    """
    lengths = np.diff(store.validation.ends.astype(np.int64), prepend=0)
    scored = min(int(lengths[slice(None) if documents is None else documents].sum()), MAX_SCORED_TOKENS)
    seconds = MAX_SHARE * run_seconds - FIXED_SECONDS - scored * SECONDS_PER_SCORED_TOKEN
    affordable = int(seconds / SECONDS_PER_COUNTED_TOKEN)
    wanted = min(store.train.tokens, max_tokens, MAX_TOKENS)
    if affordable >= wanted:
        return wanted
    size = 2 ** max(0, affordable).bit_length() // 2
    return size if size >= MIN_COUNTED_TOKENS else 0
