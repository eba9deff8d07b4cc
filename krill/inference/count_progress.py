"""Shows how much of counted work is done: a bar on a terminal, otherwise a line from time to time."""

from __future__ import annotations

import logging
import time

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from krill.terminal import start_progress_bar

log = logging.getLogger("krill")
LOG_SECONDS = 15.0
"""Seconds between two lines where there is no bar."""


class CountProgress:
    """Displays counts; `label`: what the bar begins with."""

    def __init__(self, label: str):
        self._label = label
        self._bar: Progress | None = None

    def start(self, done: int = 0, total: int | None = None) -> None:
        """Starts the clock, and shows the bar on a terminal."""
        self._start = self._last_log = time.monotonic()
        columns = (
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        self._bar = start_progress_bar(self._label, *columns, is_transient=True)
        if self._bar:
            self._task = self._bar.add_task("", total=total, completed=done, rate="")

    def stop(self) -> None:
        """Removes the bar."""
        if self._bar:
            self._bar.stop()

    @property
    def seconds(self) -> float:
        """Seconds since the start, more than 0."""
        return max(1e-9, time.monotonic() - self._start)

    def show(self, done: int, total: int, rate: str, line: str) -> None:
        """Shows `rate` beside the bar, or logs `line` if the last one is long ago."""
        if self._bar:
            self._bar.update(self._task, completed=done, total=total, rate=rate)
        elif time.monotonic() - self._last_log > LOG_SECONDS:
            self._last_log = time.monotonic()
            log.info("%s", line)
