"""The scores of a model as a table."""

from __future__ import annotations

from collections.abc import Sequence

from krill.evaluation.results import Score, TaskResult
from krill.tables import fit_table

_HEADER = ("task", "part", "metric", "score", "95 %", "items", "chance", "unigram", "trigram")


def format_scores(results: Sequence[TaskResult], width: int | None) -> list[str]:
    """Returns the lines of a table with a row for each score by all of the probability, at most `width` columns."""
    rows = [
        _format_row(result, score)
        for result in results
        for score in result.scores
        if score.metric != "accuracy_per_byte" or not score.name
    ]
    return fit_table(_HEADER, rows, width, left=(0, 1, 2), drop=(2, 7, 5, 6, 8), fold=(1,))


def format_value(score: Score, value: float | None, digits: int = 3) -> str:
    """Returns a value of the metric of `score`: an accuracy in percent, anything else with `digits` decimals."""
    if value is None:
        return ""
    is_percentage = score.metric.startswith("accuracy")
    return f"{100 * value:.{digits - 2}f} %" if is_percentage else f"{value:.{digits}f}"


def format_metric(score: Score) -> str:
    """Returns the name of the metric of `score` for reading."""
    return score.metric.replace("_", " ")


def _format_row(result: TaskResult, score: Score) -> tuple[str, ...]:
    low, high = format_value(score, score.low), format_value(score, score.high)
    return (
        result.task, score.name, format_metric(score), format_value(score, score.value),
        f"{low} to {high}" if low else "", f"{score.items:,}",
        *(format_value(score, value) for value in (score.chance, score.unigram, score.trigram)),
    )  # fmt: skip
