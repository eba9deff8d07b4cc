"""Reads the scores of a run from its evaluations/, without the outcomes of items and what is needed to compare them.

krill.evaluation.results writes the files. krill-runs lists many runs, and does not load pydantic and NumPy for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from krill.checksum import ChecksumError, read_checksummed_json

EVALUATIONS_FOLDER = "evaluations"
FINAL_WEIGHTS = ("", "model")
"""Values of weights_folder that are not of a checkpoint."""


@dataclass(frozen=True)
class TaskScore:
    """The main score of a task."""

    task: str
    metric: str
    value: float
    low: float | None
    """Bounds of the 95 % interval; None: unknown."""
    high: float | None
    items: int
    weights_folder: str
    """The folder of the evaluated weights in the folder of the run: model, or a checkpoint."""


def read_scores(run: Path) -> tuple[TaskScore, ...]:
    """Returns the score of each task, in the order of their names; damaged files are left out.

    It is one of the final model rather than of a checkpoint, then the one with the most items, then the newest.
    """
    preferred: dict[str, tuple[tuple[bool, int, int], TaskScore]] = {}
    for file in (run / EVALUATIONS_FOLDER).glob("*.json"):
        try:
            written_ns = file.stat().st_mtime_ns
        except OSError:
            continue
        score = _read_main_score(file, written_ns)
        if score is not None:
            priority = (score.weights_folder in FINAL_WEIGHTS, score.items, written_ns)
            if score.task not in preferred or preferred[score.task][0] < priority:
                preferred[score.task] = (priority, score)
    return tuple(score for _, (_, score) in sorted(preferred.items(), key=lambda entry: entry[0]))


@lru_cache(maxsize=4096)
def _read_main_score(file: Path, written_ns: int) -> TaskScore | None:
    """Reads a result once for each time at which it was written; None: it is damaged."""
    try:
        result: dict[str, Any] = read_checksummed_json(file)
        main = result["scores"][0]
        return TaskScore(
            str(result["task"]), str(main["metric"]), float(main["value"]), main.get("low"), main.get("high"),
            int(main["items"]), str(result.get("weights_folder") or ""),
        )  # fmt: skip
    except (OSError, ChecksumError, LookupError, TypeError, ValueError):
        return None


def is_accuracy(metric: str) -> bool:
    """Returns whether a metric is a share of right items, which is displayed in percent."""
    return metric.startswith("acc")


def format_score_value(value: float, metric: str, digits: int = 3) -> str:
    """Returns an accuracy in percent, and another score as a number with `digits` decimals."""
    return f"{100 * value:.{digits - 2}f} %" if is_accuracy(metric) else f"{value:.{digits}f}"


def describe_metric(metric: str) -> str:
    """Returns the name of a metric for reading."""
    return metric.replace("_", " ")


def summarize_scores(scores: Sequence[TaskScore]) -> str:
    """Returns the scores of a run on one line."""
    return ", ".join(f"{score.task} {format_score_value(score.value, score.metric)}" for score in scores)


def describe_score(score: TaskScore) -> str:
    """Returns a score with its metric, its interval, and the checkpoint if it is not of the final model."""
    value, low, high = (
        "" if bound is None else format_score_value(bound, score.metric)
        for bound in (score.value, score.low, score.high)
    )
    interval = f", {low} to {high}" if low and high else ""
    checkpoint = "" if score.weights_folder in FINAL_WEIGHTS else f", {score.weights_folder}"
    return f"{describe_metric(score.metric)} {value}{interval}, {score.items:,} items{checkpoint}"
