"""How far a score is known from a number of items, and whether two models differ by more than chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, lgamma, log

import numpy as np

RESAMPLES = 10_000
_SEED = 20
LEVEL = 0.95
_CHUNK_ELEMENTS = 2**22


@dataclass(frozen=True)
class Interval:
    """An estimate, and the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


def bootstrap_ratio(numerators: np.ndarray, denominators: np.ndarray | None = None) -> Interval:
    """Returns sum(numerators) / sum(denominators) with its percentile interval over resampled items.

    `numerators`, `denominators`: (items,), at least one; None: ones, so that the ratio is a mean. Efron 1979.
    """
    if denominators is None:
        denominators = np.ones(len(numerators))
    value = float(numerators.sum() / denominators.sum())
    low, high = np.quantile(_resample(numerators, denominators), ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(value, float(low), float(high))


def _resample(numerators: np.ndarray, denominators: np.ndarray) -> np.ndarray:
    """Returns the ratios of RESAMPLES resamples of the items; (RESAMPLES,)."""
    random = np.random.default_rng(_SEED)
    items = len(numerators)
    ratios = []
    for chunk in np.array_split(np.arange(RESAMPLES), max(1, RESAMPLES * items // _CHUNK_ELEMENTS)):
        drawn = random.integers(items, size=(len(chunk), items))
        ratios.append(numerators[drawn].sum(axis=1) / denominators[drawn].sum(axis=1))
    return np.concatenate(ratios)


def compare_accuracies(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the p-value of McNemar's exact test for two models that answered the same items.

    `one`, `other`: how well each item was answered, 0 to 1, (items,). Only items that the models answered differently
    count; by chance each model is better in half of them.
    """
    wins, losses = int((one > other).sum()), int((one < other).sum())
    return binomial_p_value(wins, wins + losses)


def binomial_p_value(successes: int, trials: int) -> float:
    """Returns the two-sided p-value of `successes` for a probability of one half."""
    if trials == 0:
        return 1.0
    tail = min(successes, trials - successes)
    logs = [
        lgamma(trials + 1) - lgamma(k + 1) - lgamma(trials - k + 1) - trials * log(2) for k in range(tail + 1)
    ]
    return min(1.0, 2 * sum(exp(value) for value in logs))


def compare_ratios(one: np.ndarray, other: np.ndarray, denominators: np.ndarray) -> float:
    """Returns the p-value of a paired bootstrap for two models' ratios, such as bits per byte, of the same items.

    `one`, `other`: the numerators of each item, (items,). Koehn 2004.
    """
    differences = _resample(one - other, denominators)
    share = min((differences <= 0).mean(), (differences >= 0).mean())
    return float(min(1.0, max(2 * share, 1 / RESAMPLES)))


def correct_p_values(p_values: Sequence[float]) -> list[float]:
    """Returns p-values that hold for all of several comparisons together. Holm 1979."""
    corrected, highest = [0.0] * len(p_values), 0.0
    for position, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - position) * p_values[index]))
        corrected[index] = highest
    return corrected
