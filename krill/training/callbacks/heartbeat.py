"""A sign of life of a rank: its step, and a count that a thread increases, in a small file.

The process that started the ranks watches the files (krill.launch.rank_watch). The thread also counts while the rank
waits for another one, so that of all ranks only those that do not run at all fall silent.
"""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import count
from threading import Event, Thread

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

HEARTBEAT_VARIABLE = "KRILL_HEARTBEAT"
"""Environment variable with the path of the file; without it, nothing is written."""
HEARTBEAT_SECONDS = 2.0


class Heartbeat(TrainerCallback):
    """Writes the sign of life within its context, after each step and every HEARTBEAT_SECONDS."""

    def __init__(self) -> None:
        self.step, self.count = 0, count()
        self.descriptor: int | None = None
        self.stop = Event()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self.step = state.global_step
        self._beat()

    def __enter__(self) -> Heartbeat:
        if file := os.environ.get(HEARTBEAT_VARIABLE):
            self.descriptor = os.open(file, os.O_WRONLY | os.O_CREAT, 0o666)
            Thread(target=self._run, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()

    def _beat(self) -> None:
        if self.descriptor is not None:
            with suppress(OSError):  # always the same bytes of the file: a full disk does not matter
                os.pwrite(self.descriptor, f"{self.step:>15} {next(self.count):>15}".encode(), 0)

    def _run(self) -> None:
        while not self.stop.is_set():
            self._beat()
            self.stop.wait(HEARTBEAT_SECONDS)
