"""Hand-written results of tasks, for tests of comparisons."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from krill.evaluation.results import Score, TaskResult


def make_choices_result(
    correct: Sequence[float] | np.ndarray, task: str = "english_pairs", items_hash: str = "pairs"
) -> TaskResult:
    """Returns the result of a task of two choices each."""
    values = np.asarray(correct, np.float64)
    score = Score(
        name="",
        metric="accuracy",
        value=float(values.mean()),
        low=0.0,
        high=1.0,
        items=len(values),
        chance=0.5,
    )
    return TaskResult(
        task=task, kind="choices", language="en", version=1, items_hash=items_hash, scores=(score,),
        outcomes={"correct": values.tolist()},
    )  # fmt: skip


def make_text_result(
    bits_per_byte: Sequence[float] | np.ndarray, items_hash: str = "text", bytes_each: int = 100
) -> TaskResult:
    """Returns bits per byte of documents of equal size."""
    bits = np.asarray(bits_per_byte, np.float64)
    score = Score(
        name="", metric="bits_per_byte", value=float(bits.mean()), low=0.0, high=9.0, items=len(bits),
        higher_is_better=False,
    )  # fmt: skip
    outcomes = {"nats": (bits * np.log(2) * bytes_each).tolist(), "bytes": [float(bytes_each)] * len(bits)}
    return TaskResult(
        task="text", kind="text", language="en", version=1, items_hash=items_hash, scores=(score,),
        outcomes=outcomes,
    )  # fmt: skip
