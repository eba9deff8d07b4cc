"""Shows the progress of an evaluation: a bar on a terminal, otherwise a line from time to time."""

from __future__ import annotations

import logging
import time
from datetime import timedelta

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from krill.terminal import start_progress_bar

log = logging.getLogger("krill")
EVALUATION_LOG_SECONDS = 15.0
"""Seconds between two lines where there is no bar."""


class EvaluationProgress:
    """Displays how many sequences of a task have been scored; a context manager."""

    def __init__(self, task: str):
        self._task_name = task
        self._bar: Progress | None = None

    def __enter__(self) -> EvaluationProgress:
        self._start = self._last_log = time.monotonic()
        columns = (
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        self._bar = start_progress_bar(f"{self._task_name:<14}", *columns, is_transient=True)
        if self._bar:
            self._task = self._bar.add_task("", total=None, rate="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def report(self, done: int, total: int) -> None:
        """Displays that `done` of `total` sequences have been scored."""
        seconds = max(1e-9, time.monotonic() - self._start)
        rate = f"{done:,} of {total:,} sequences, {done / seconds:,.0f}/s"
        if self._bar:
            self._bar.update(self._task, completed=done, total=total, rate=rate)
        elif time.monotonic() - self._last_log > EVALUATION_LOG_SECONDS:
            self._last_log = time.monotonic()
            left = timedelta(seconds=round(seconds * (total / max(1, done) - 1)))
            log.info("%-14s %s, %s left", self._task_name, rate, left)
