"""Compares the results of two models, or of two configurations with several seeds, item by item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from krill.evaluation.results import TaskResult
from krill.evaluation.statistics import compare_accuracies, compare_ratios, compare_seeds

MCNEMAR, BOOTSTRAP, SEEDS = "mcnemar", "paired_bootstrap", "seeds_and_items"
"""The tests."""


@dataclass(frozen=True)
class Comparison:
    """Whether two scores of the same items differ."""

    test: str
    """One of MCNEMAR, BOOTSTRAP, SEEDS."""
    p_value: float
    """Two-sided, of this comparison alone."""


def compare_results(one: Sequence[TaskResult], other: Sequence[TaskResult]) -> Comparison | None:
    """Returns the comparison of two configurations on a task; None if their items are not the same, or not known.

    `one`, `other`: a result for each seed, at least one. Of one seed each, only the items are sampled: McNemar's test
    for right and wrong answers, a paired bootstrap for anything else. Else the seeds are, too.
    """
    if len({result.items_hash for result in (*one, *other)}) > 1:
        return None
    values, other_values = stack_item_scores(one), stack_item_scores(other)
    if values is None or other_values is None or values.shape[1] != other_values.shape[1]:
        return None
    if len(one) > 1 or len(other) > 1:
        return Comparison(SEEDS, compare_seeds(values, other_values))
    if _is_right_or_wrong(one[0], values) and _is_right_or_wrong(other[0], other_values):
        return Comparison(MCNEMAR, compare_accuracies(values[0], other_values[0]))
    if one[0].kind == "text":
        bits, other_bits = (result.get_outcomes("nats") / np.log(2) for result in (one[0], other[0]))
        return Comparison(BOOTSTRAP, compare_ratios(bits, other_bits, one[0].get_outcomes("bytes")))
    ones = np.ones(values.shape[1])
    return Comparison(BOOTSTRAP, compare_ratios(values[0], other_values[0], ones))


def stack_item_scores(results: Sequence[TaskResult]) -> np.ndarray | None:
    """Returns the value of each item for each result, (results, items); None: they are not known."""
    rows = [scores for result in results if (scores := result.compute_item_scores()) is not None]
    has_all = len(rows) == len(results) and len({len(row) for row in rows}) == 1
    return np.stack(rows) if has_all else None


def _is_right_or_wrong(result: TaskResult, values: np.ndarray) -> bool:
    return result.kind == "choices" or bool(np.isin(values, (0.0, 1.0)).all())
