"""Ranks models by their results, best first, and finds which differ from the best by more than chance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from krill.evaluation.compare import Comparison, compare_results
from krill.evaluation.configurations import Configuration
from krill.evaluation.statistics import correct_p_values

SIGNIFICANT = 0.05
"""p-value below which two models differ by more than chance."""
RANKING_TASK = "text"
"""The task by which models are ranked if all have it: bits per byte."""


@dataclass(frozen=True)
class RankedSet:
    """Rows with the same items of the ranking task, the best first; others are not ranked with them."""

    items_hash: str | None
    """None: rows without the ranking task."""
    rows: tuple[Configuration, ...]


@dataclass(frozen=True)
class CorrectedComparison:
    """The comparison of a row with the best row of the same items."""

    comparison: Comparison
    p_value: float
    """Holds for all comparisons of the table together."""

    @property
    def is_significant(self) -> bool:
        return self.p_value < SIGNIFICANT


@dataclass(frozen=True)
class Ranking:
    """Models in an order, and how each compares with the best on each task."""

    tasks: tuple[str, ...]
    """All tasks, those of the ranking first."""
    sets: tuple[RankedSet, ...]
    comparisons: dict[tuple[int, str], CorrectedComparison]
    """The number of a row, from 0 over all sets, and a task → its comparison with the best row of the same items."""
    num_pairs: int
    """The number of pairs of rows with the same items, over all tasks: what the p-values are corrected for."""

    @property
    def rows(self) -> list[Configuration]:
        """All rows, in order."""
        return [row for ranked in self.sets for row in ranked.rows]


def rank_configurations(rows: Sequence[Configuration]) -> Ranking:
    """Ranks rows by bits per byte if all have it, else by the first task that all have, else by the first of all."""
    tasks = list(dict.fromkeys(task for row in rows for task in row.tasks))
    common = [task for task in tasks if all(task in row.tasks for row in rows)]
    ranking_task = next(iter([RANKING_TASK] if RANKING_TASK in common else [*common, *tasks]), "")
    tasks.sort(key=lambda task: task != ranking_task)
    by_hash: dict[str | None, list[Configuration]] = {}
    for row in rows:
        by_hash.setdefault(row.get_items_hash(ranking_task), []).append(row)
    sets = [
        RankedSet(items_hash, tuple(_sort_best_first(members, ranking_task)))
        for items_hash, members in sorted(by_hash.items(), key=lambda entry: entry[0] is None)
    ]
    ordered = [row for ranked in sets for row in ranked.rows]
    comparisons, num_pairs = _compare_with_best(ordered, tasks)
    return Ranking(tuple(tasks), tuple(sets), comparisons, num_pairs)


def _sort_best_first(rows: Sequence[Configuration], task: str) -> list[Configuration]:
    def get_key(row: Configuration) -> float:
        score = row.compute_score(task)
        if score is None:
            return math.inf
        return -score if row.get_results(task)[0].main_score.higher_is_better else score

    return sorted(rows, key=get_key)


def group_by_items(rows: Sequence[Configuration], task: str) -> Iterator[list[int]]:
    """Yields the numbers of the rows that have the same items of `task`."""
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        if items_hash := row.get_items_hash(task):
            groups.setdefault(items_hash, []).append(index)
    yield from groups.values()


def _compare_with_best(
    rows: Sequence[Configuration], tasks: Sequence[str]
) -> tuple[dict[tuple[int, str], CorrectedComparison], int]:
    """Returns the comparisons with the best row of the same items, and the number of pairs of such rows.

    The data chose which row is the best, so the p-values are corrected for all pairs.
    """
    comparisons: dict[tuple[int, str], Comparison] = {}
    num_pairs = 0
    for task in tasks:
        for group in group_by_items(rows, task):
            num_pairs += len(group) * (len(group) - 1) // 2
            best = _sort_best_first([rows[index] for index in group], task)[0]
            for index in group:
                if rows[index] is best:
                    continue
                comparison = compare_results(rows[index].get_results(task), best.get_results(task))
                if comparison is not None:
                    comparisons[index, task] = comparison
    corrected = correct_p_values([comparison.p_value for comparison in comparisons.values()], num_pairs)
    pairs = zip(comparisons.items(), corrected, strict=True)
    return {key: CorrectedComparison(one, p_value) for (key, one), p_value in pairs}, num_pairs
