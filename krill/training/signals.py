"""SIGINT, SIGTERM, USR1, USR2: save at the next step, then stop."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from krill import errors
from krill.errors import Stopped

EXIT = {
    signal.SIGINT: errors.INTERRUPTED,
    signal.SIGTERM: errors.REQUEUE,
    signal.SIGUSR1: errors.REQUEUE,
    signal.SIGUSR2: errors.REQUEUE,
}


class StopOnSignal(TrainerCallback):
    """Only notes the signal when it comes; the loop saves and stops where it can.

    A second SIGINT interrupts at once: what was saved before stays.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.previous: dict[signal.Signals, Any] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        for number in EXIT:
            self.previous[number] = signal.signal(number, self._note)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.received:
            control.should_save = control.should_training_stop = True

    def restore(self) -> None:
        """Give the signals back."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous.clear()

    def check(self, step: int, steps: int) -> None:
        """Raise Stopped when a signal ended the training before its last step."""
        if self.received and step < steps:
            raise Stopped(
                f"stopped by {self.received.name} at step {step} of {steps}; the state is saved, "
                "the same command goes on",
                EXIT[self.received],
            )

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received == signal.SIGINT and number == signal.SIGINT:
            self.restore()
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
