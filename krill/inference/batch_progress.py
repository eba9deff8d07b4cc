"""Shows the progress of a batch: a bar on a terminal, otherwise a line from time to time, and a summary."""

from __future__ import annotations

import logging
import time
from collections import Counter

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from krill.inference.batch import Answer
from krill.terminal import start_progress_bar

log = logging.getLogger("krill")
LOG_SECONDS = 15.0
"""Seconds between two lines where there is no bar."""


class BatchProgress:
    """Counts the answers; a context manager that displays them."""

    def __init__(self, total: int, done: int):
        self._total, self._done, self._new_tokens = total, done, 0
        self._reasons: Counter[str] = Counter()
        self._bar: Progress | None = None

    def __enter__(self) -> BatchProgress:
        self._start = self._last_log = time.monotonic()
        columns = (
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        self._bar = start_progress_bar("answers", *columns, is_transient=True)
        if self._bar:
            self._task = self._bar.add_task("", total=self._total, completed=self._done, rate="")
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar:
            self._bar.stop()
        if error == (None, None, None):
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in self._reasons.most_common())
            log.info("answers     %s; %s", self._describe(), reasons or "all were there")

    def report(self, answer: Answer) -> None:
        """Counts an answer."""
        self._done += 1
        self._new_tokens += answer.answer_tokens
        self._reasons[answer.finish_reason] += 1
        if self._bar:
            self._bar.update(self._task, completed=self._done, rate=self._describe())
        elif time.monotonic() - self._last_log > LOG_SECONDS:
            self._last_log = time.monotonic()
            log.info("answers     %s", self._describe())

    def _describe(self) -> str:
        seconds = max(1e-9, time.monotonic() - self._start)
        return f"{self._done:,} of {self._total:,}, {self._new_tokens / seconds:,.0f} tokens/s"
