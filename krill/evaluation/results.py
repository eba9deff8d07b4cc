"""The result of one task for one model: its scores, and the outcome of each item for comparisons of models.

    <run>/evaluations/<task>-<signature>.json

The signature covers the weights, the items and every setting that changes a score, so that a result is found again
and never mistaken for another. krill/evaluation/compare.py compares results.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from krill import atomic
from krill.checksum import ChecksumError, read_checksummed_json, write_checksummed_json
from krill.runs.scores import EVALUATIONS_FOLDER, FINAL_WEIGHTS

VERSION = 1
"""Part of every signature: changes when scores are computed in another way."""


class Score(BaseModel, frozen=True):
    """One number of a task."""

    name: str
    """The part of the task, such as a phenomenon or a source; empty: all of it."""
    metric: str
    """accuracy, accuracy_per_byte, bits_per_byte, or the name that lm-eval gives it."""
    value: float
    low: float | None = None
    """Bounds of the 95 % interval; null: unknown."""
    high: float | None = None
    items: int
    """Number of items that it was computed from."""
    higher_is_better: bool = True
    chance: float | None = None
    """The score of a model that knows nothing."""
    unigram: float | None = None
    """The score of a unigram model of the training text."""
    trigram: float | None = None
    nats_per_token: float | None = None
    """The loss on the tokens of a text, eos not counted; null: no text."""


class TaskResult(BaseModel, frozen=True):
    """The scores of a model on a task."""

    task: str
    kind: Literal["choices", "text", "lm_eval"]
    language: str | None
    """ISO 639-1 code; null: several languages, or unknown."""
    version: int
    """VERSION of this file when the scores were computed."""
    items_hash: str
    """Results with the same hash have the same items in the same order."""
    scores: tuple[Score, ...]
    """The first one is of the whole task, if it has such a score."""
    outcomes: dict[str, list[float]] = Field(default_factory=dict)
    """Values per item: correct and correct_per_byte (0 or 1) of choices; nats and bytes of documents; the metric of
    each document of lm-eval's tasks."""
    notes: dict[str, int | float | str] = Field(default_factory=dict)
    """What else a reader has to know, such as the number of truncated items."""
    model: str = ""
    weights: str = ""
    """Identifies the weights, the configuration and the tokenizer of the model."""
    weights_folder: str = ""
    """The folder of the weights in the folder of the run, such as model; empty: they are not of a run."""
    signature: str = ""
    """Identifies the model, the items and the settings; of a result that was written."""
    seconds: float = 0.0
    """How long the evaluation took."""

    @property
    def main_score(self) -> Score:
        """The score that the table of several models shows."""
        return self.scores[0]

    @property
    def displayed_scores(self) -> list[Score]:
        """All scores but the accuracies per byte of single phenomena."""
        return [score for score in self.scores if score.metric != "accuracy_per_byte" or not score.name]

    def get_outcomes(self, name: str) -> np.ndarray:
        """Returns the values of every item; float64 (items,)."""
        return np.array(self.outcomes[name], np.float64)

    def compute_item_scores(self) -> np.ndarray | None:
        """Returns a value of each item, whose mean is the main score; float64 (items,).

        None: they are not known, or the score is another mean, such as that of the tasks of a group of lm-eval that
        have different numbers of items.
        """
        if self.kind == "text":
            return self.get_outcomes("nats") / np.log(2) / self.get_outcomes("bytes").mean()
        name = "correct" if self.kind == "choices" else self.main_score.metric
        if name not in self.outcomes:
            return None
        values = self.get_outcomes(name)
        return values if np.isclose(values.mean(), self.main_score.value, atol=1e-9) else None


def get_result_file(folder: Path, task: str, signature: str) -> Path:
    """Returns the file of a result in the folder of a run or model."""
    name = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in task)
    return folder / EVALUATIONS_FOLDER / f"{name}-{signature[:8]}.json"


def write_result(file: Path, result: TaskResult) -> None:
    """Writes a result, at once."""
    atomic.create_folder(file.parent)
    write_checksummed_json(file, result.model_dump(mode="json"))


def write_results(folder: Path, results: Sequence[TaskResult]) -> Path:
    """Writes results to the folder evaluations/ in `folder`, and returns that folder."""
    for result in results:
        write_result(get_result_file(folder, result.task, result.signature), result)
    return folder / EVALUATIONS_FOLDER


def read_result(file: Path, signature: str | None = None) -> TaskResult | None:
    """Reads a result; None if it is missing, damaged, or has another signature."""
    try:
        result = TaskResult.model_validate(read_checksummed_json(file))
    except (OSError, ChecksumError, ValidationError):
        return None
    return result if signature in (None, result.signature) else None


def read_results(folder: Path, weights: str | None = None) -> list[TaskResult]:
    """Returns a result of each task in the folder of a run, in the order of their names.

    It is one of the final model rather than of a checkpoint, then the one with the most items, then the newest.
    `weights`: only results of these weights.
    """
    preferred: dict[str, tuple[tuple[bool, int, int], TaskResult]] = {}
    for file in sorted((folder / EVALUATIONS_FOLDER).glob("*.json")):
        result = read_result(file)
        if result is not None and weights in (None, result.weights):
            is_final = result.weights_folder in FINAL_WEIGHTS
            priority = (is_final, result.main_score.items, file.stat().st_mtime_ns)
            if result.task not in preferred or preferred[result.task][0] < priority:
                preferred[result.task] = (priority, result)
    return [result for _, (_, result) in sorted(preferred.items())]
