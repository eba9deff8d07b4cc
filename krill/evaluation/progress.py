"""Shows the progress of an evaluation."""

from __future__ import annotations

from datetime import timedelta

from krill.inference.count_progress import CountProgress


class EvaluationProgress:
    """Displays how many sequences of a task have been scored; a context manager."""

    def __init__(self, task: str):
        self._label = f"{task:<14}"
        self._progress = CountProgress(self._label)

    def __enter__(self) -> EvaluationProgress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def report(self, done: int, total: int) -> None:
        """Displays that `done` of `total` sequences have been scored."""
        seconds = self._progress.seconds
        rate = f"{done:,} of {total:,} sequences, {done / seconds:,.0f}/s"
        left = timedelta(seconds=round(seconds * (total / max(1, done) - 1)))
        self._progress.show(done, total, rate, f"{self._label} {rate}, {left} left")
