"""The scores of a model as a table."""

from __future__ import annotations

from collections.abc import Sequence

from krill.evaluation.results import Score, TaskResult
from krill.runs.scores import describe_metric, format_score_value
from krill.tables import fit_table

_HEADER = ("task", "part", "metric", "score", "95 %", "items", "chance", "unigram", "trigram")


def format_scores(results: Sequence[TaskResult], width: int | None) -> list[str]:
    """Returns the lines of a table with a row for each displayed score, at most `width` columns wide.

    Where there is no room for the column of the metrics, those other than the first one of a task are in the column
    of the parts.
    """
    lines = _fit(results, width, has_metrics_in_parts=False)
    has_metrics = "metric" in lines[0].split()
    return lines if has_metrics else _fit(results, width, has_metrics_in_parts=True)


def _fit(results: Sequence[TaskResult], width: int | None, has_metrics_in_parts: bool) -> list[str]:
    rows = [
        _format_row(result, score, has_metrics_in_parts)
        for result in results
        for score in result.displayed_scores
    ]
    return fit_table(_HEADER, rows, width, left=(0, 1, 2), drop=(2, 7, 5, 6, 8), fold=(1,))


def _format_row(result: TaskResult, score: Score, has_metric_in_part: bool) -> tuple[str, ...]:
    def format_value(value: float | None) -> str:
        return "" if value is None else format_score_value(value, score.metric)

    part = score.name
    if has_metric_in_part and score.metric != result.main_score.metric:
        part = " ".join(filter(None, (part, describe_metric(score.metric))))
    bounds = "" if score.low is None else f"{format_value(score.low)} to {format_value(score.high)}"
    return (
        result.task, part, describe_metric(score.metric), format_value(score.value), bounds,
        f"{score.items:,}", *map(format_value, (score.chance, score.unigram, score.trigram)),
    )  # fmt: skip
