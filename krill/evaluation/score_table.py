"""The scores of a model as a table."""

from __future__ import annotations

from collections.abc import Sequence

from krill.evaluation.results import Score, TaskResult
from krill.runs.scores import describe_metric, format_score_value
from krill.tables import fit_table

_HEADER = ("task", "metric or part", "score", "95 %", "items", "chance", "unigram", "trigram")


def format_scores(results: Sequence[TaskResult], width: int | None) -> list[str]:
    """Returns the lines of a table with a row for each displayed score, at most `width` columns wide."""
    rows = [_format_row(result, score) for result in results for score in result.displayed_scores]
    return fit_table(_HEADER, rows, width, left=(0, 1), drop=(6, 4, 5, 7), fold=(1,))


def _format_row(result: TaskResult, score: Score) -> tuple[str, ...]:
    def format_value(value: float | None) -> str:
        return "" if value is None else format_score_value(value, score.metric)

    bounds = "" if score.low is None else f"{format_value(score.low)} to {format_value(score.high)}"
    return (
        result.task, _name_score(result, score), format_value(score.value), bounds, f"{score.items:,}",
        *map(format_value, (score.chance, score.unigram, score.trigram)),
    )  # fmt: skip


def _name_score(result: TaskResult, score: Score) -> str:
    """Returns the metric of a score of the whole task, or the part of a score in the metric of the main one."""
    metric = describe_metric(score.metric)
    if not score.name:
        return metric
    return score.name if score.metric == result.main_score.metric else f"{score.name}, {metric}"
