"""SIGINT, SIGTERM, USR1, USR2: while training, save at the next step, then stop; before and after, stop at once.

A validation between two steps is left at its next batch, and done when the run goes on. What one rank receives ends
all of them, at the same step.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, TypeVar

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from krill.errors import SignalInterrupt
from krill.signals import EXIT_CODES, ignore_repeated_signals
from krill.training import ranks

T = TypeVar("T")


class EvaluationInterrupted(Exception):
    """A signal came in a validation."""


class StopOnSignal(TrainerCallback):
    """A context in which signals stop the run; a callback that stops the training where it can be saved.

    While training a signal is only noted; the loop saves and stops at the end of the step, but a second SIGINT
    interrupts at once: what was saved before stays.
    """

    def __init__(self) -> None:
        self.received_signal: signal.Signals | None = None
        self.previous_handlers: dict[signal.Signals, Any] = {}
        self.is_training = False

    def __enter__(self) -> StopOnSignal:
        for number in EXIT_CODES:
            self.previous_handlers[number] = signal.signal(number, self._handle_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler)
        self.previous_handlers.clear()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.is_training = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.is_training = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.pending_signal():
            control.should_save = control.should_training_stop = True

    def iterate_until_signal(self, batches: Iterable[T]) -> Iterator[T]:
        """`batches`, until a signal comes while training: then raises Cut."""
        for batch in batches:
            if self.pending_signal():
                raise EvaluationInterrupted
            yield batch

    def raise_if_signaled(self, step: int, steps: int) -> None:
        """Raise Stopped when a signal came while training, in its last step or the validation after it, too."""
        if came := self.pending_signal():
            ignore_repeated_signals()
            raise SignalInterrupt(
                f"stopped by {came.name} at step {step} of {steps}; the state is saved, "
                "the same command goes on",
                EXIT_CODES[came],
                came,
            )

    def pending_signal(self) -> signal.Signals | None:
        """The signal that this rank or another has received."""
        number = ranks.all_reduce_max(self.received_signal or 0)
        return signal.Signals(number) if number else None

    def _handle_signal(self, number: int, frame: FrameType | None) -> None:
        received = signal.Signals(number)
        if number == signal.SIGINT and (not self.is_training or self.received_signal == signal.SIGINT):
            raise KeyboardInterrupt
        if not self.is_training:
            ignore_repeated_signals()
            raise SignalInterrupt(
                f"stopped by {received.name}; the same command goes on", EXIT_CODES[received], received
            )
        self.received_signal = received
