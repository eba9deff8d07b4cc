"""The scores of a model as a table."""

from __future__ import annotations

from collections.abc import Sequence

from krill.evaluation.results import Score, TaskResult
from krill.runs.scores import describe_metric, format_score_value
from krill.tables import fit_table, format_table, measure_width

_HEADER = ("task", "part", "metric", "score", "95 %", "items", "chance", "unigram", "trigram")


def format_scores(results: Sequence[TaskResult], width: int | None) -> list[str]:
    """Returns the lines of a table with a row for each displayed score, at most `width` columns wide.

    Where the table is too wide, the parts of a task are below its name, in the same column.
    """
    rows = [_format_row(result, score) for result in results for score in result.displayed_scores]
    lines = format_table(rows, _HEADER, left=(0, 1, 2))
    if width is None or max(map(measure_width, lines)) <= width:
        return lines
    narrow = [(f"  {part}" if part else task, *others) for task, part, *others in rows]
    return fit_table(_HEADER[:1] + _HEADER[2:], narrow, width, left=(0, 1), drop=(6, 4, 5, 7), fold=(0,))


def _format_row(result: TaskResult, score: Score) -> tuple[str, ...]:
    def format_value(value: float | None) -> str:
        return "" if value is None else format_score_value(value, score.metric)

    bounds = "" if score.low is None else f"{format_value(score.low)} to {format_value(score.high)}"
    return (
        result.task, score.name, describe_metric(score.metric), format_value(score.value), bounds,
        f"{score.items:,}", *map(format_value, (score.chance, score.unigram, score.trigram)),
    )  # fmt: skip
