"""How far a score is known from a number of items, and whether two models differ by more than chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import atan, erfc, exp, lgamma, log, pi, sqrt

import numpy as np

RESAMPLES = 10_000
"""Number of resamples of the items from which an interval or a p-value is estimated."""
_SEED = 20
LEVEL = 0.95
"""Probability with which an interval contains what it estimates."""
_CHUNK_ELEMENTS = 2**20
"""Number of resampled items that are in memory at once, about."""
_FEW_VALUES = 8
"""The number of different values up to which resamples are counts of each, as of right and wrong answers."""
_QUADRATURE = np.polynomial.legendre.leggauss(64)
_MAX_DEGREES = 10_000
"""Degrees of freedom with which Student's t is as good as normal."""


@dataclass(frozen=True)
class Interval:
    """An estimate, and the bounds of its interval with the confidence LEVEL."""

    value: float
    low: float
    high: float


def bootstrap_ratio(numerators: np.ndarray, denominators: np.ndarray | None = None) -> Interval:
    """Returns sum(numerators) / sum(denominators) with its percentile interval over resampled items.

    `numerators`, `denominators`: (items,), at least one; None: ones, so that the ratio is a mean. Efron 1979.
    """
    values, counts = np.unique(numerators, return_counts=True)
    if denominators is None and len(values) <= _FEW_VALUES:
        value, ratios = float(numerators.mean()), _resample_few_values(values, counts)
    else:
        denominators = np.ones(len(numerators)) if denominators is None else denominators
        value = float(numerators.sum() / denominators.sum())
        ratios = _resample(numerators, denominators)
    low, high = np.quantile(ratios, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(value, float(low), float(high))


def _resample_few_values(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns the means of RESAMPLES resamples of items of which `counts` have each of `values`; (RESAMPLES,).

    How often a value is drawn is all that a mean depends on, such as the number of right answers.
    """
    items = int(counts.sum())
    drawn = np.random.default_rng(_SEED).multinomial(items, counts / items, size=RESAMPLES)
    means: np.ndarray = drawn @ values / items
    return means


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

    `one`, `other`: the numerators of each item, (items,). Koehn 2004. Where all resamples have the same sign, the
    p-value is that of a normal distribution with their standard deviation. It is at least that of as many items which
    all favor one model (the sign test): resamples of few items say too little about others.
    """
    smallest = min(1.0, 2.0 ** (1 - len(one)))
    differences = _resample(one - other, denominators)
    share = float(min((differences <= 0).mean(), (differences >= 0).mean()))
    if share:
        return max(smallest, min(1.0, 2 * share))
    deviation = float(differences.std())
    tail = erfc(abs(float(differences.mean())) / deviation / sqrt(2)) if deviation else 0.0
    return max(smallest, min(1 / RESAMPLES, tail))


def compare_seeds(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the p-value of a t-test for two configurations, at least one of them with several seeds.

    `one`, `other`: the value of each item for each seed, (seeds, items), of the same items. The variance of the
    difference is that over seeds (Welch 1947) and that over items (paired), less what both contain: the residual of
    seeds and items. A configuration with one seed is assumed to vary over seeds as the other one does (Crawford and
    Howell 1998).
    """
    spreads = [measure_spread(values) for values in (one, other)]
    counts = [len(values) for values in (one, other)]
    terms = [
        (spread.variance / count, count - 1)
        for spread, count in zip(spreads, counts, strict=True)
        if count > 1
    ]
    residual = sum(
        spread.item_variance / count for spread, count in zip(spreads, counts, strict=True) if count > 1
    )
    if len(terms) == 1:
        several = spreads[counts.index(max(counts))]
        terms = [(several.variance / max(counts) + several.variance, max(counts) - 1)]
        residual = several.item_variance / max(counts) + several.item_variance
    seed_variance = sum(variance for variance, _ in terms)
    differences = one.mean(axis=0) - other.mean(axis=0)
    items = len(differences)
    item_variance = float(differences.var(ddof=1)) / items if items > 1 else 0.0
    variance = max(seed_variance + item_variance - residual, seed_variance, item_variance)
    difference = float(differences.mean())
    if variance == 0:
        return 1.0 if difference == 0 else 0.0
    terms.append((item_variance, max(1, items - 1)))
    degrees = (seed_variance + item_variance) ** 2 / sum(term**2 / count for term, count in terms)
    return t_test_p_value(difference / sqrt(variance), degrees)


def t_test_p_value(t: float, degrees: float) -> float:
    """Returns the two-sided p-value of Student's t with `degrees` of freedom, at least 1.

    With x = √degrees · tan(angle) its density is proportional to cos(angle)^(degrees - 1).
    """
    degrees = min(degrees, _MAX_DEGREES)
    start = atan(abs(t) / sqrt(degrees))
    end = min(pi / 2, start + 40 / sqrt(degrees))
    nodes, weights = _QUADRATURE
    angles = start + (end - start) * (nodes + 1) / 2
    integral = float((np.cos(angles) ** (degrees - 1)) @ weights) * (end - start) / 2
    return min(1.0, 2 * integral * exp(lgamma((degrees + 1) / 2) - lgamma(degrees / 2)) / sqrt(pi))


@dataclass(frozen=True)
class SeedSpread:
    """How the scores of a configuration vary over its seeds, on the same items."""

    mean: float
    """The mean of the scores over seeds."""
    variance: float
    """The variance of the scores of single seeds."""
    item_variance: float
    """The part of it that is due to the sample of items: with more items it would be smaller."""

    @property
    def deviation(self) -> float:
        """The standard deviation of the scores of single seeds."""
        return sqrt(self.variance)

    @property
    def item_share(self) -> float:
        """The share of the variance that is due to the sample of items, 0 to 1."""
        return min(1.0, self.item_variance / self.variance) if self.variance else 0.0


def measure_spread(values: np.ndarray) -> SeedSpread:
    """Returns how the scores of several seeds vary; `values`: (seeds, items), whose means over items are the scores.

    A two-way analysis of variance without replication: the scores vary because seeds differ on all items, and because
    each item is by chance easier for some seeds. The residual variance divided by the number of items is that second
    part. Of one seed both are 0.
    """
    seeds, items = values.shape
    scores = values.mean(axis=1)
    residuals = values - values.mean(axis=0) - scores[:, None] + values.mean()
    degrees = max(1, (seeds - 1) * (items - 1))
    variance = float(scores.var(ddof=1)) if seeds > 1 else 0.0
    return SeedSpread(float(scores.mean()), variance, float((residuals**2).sum()) / degrees / items)


def correct_p_values(p_values: Sequence[float], comparisons: int | None = None) -> list[float]:
    """Returns p-values that hold for all of several comparisons together. Holm 1979.

    `comparisons`: the number of comparisons of which these were selected by the data; None: there are no others.
    """
    total = len(p_values) if comparisons is None else comparisons
    corrected, highest = [0.0] * len(p_values), 0.0
    for position, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (total - position) * p_values[index]))
        corrected[index] = highest
    return corrected
