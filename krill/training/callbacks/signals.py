"""Saves a checkpoint and stops at the end of the step on SIGINT, SIGTERM, SIGUSR1 and SIGUSR2.

Before and after training, these signals stop the process at once. A validation or an evaluation is interrupted at its
next batch and repeated when the run resumes. A signal to one rank stops all ranks at the same step.
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
    """A signal was received during a validation or an evaluation."""


class StopOnSignal(TrainerCallback):
    """Context manager that handles signals, and callback that stops the training where it can be saved.

    While training, the handler only records the signal; the loop saves and stops at the end of the step. A second
    SIGINT interrupts at once; earlier checkpoints remain.
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
        """Yields `batches`; raises EvaluationInterrupted once a signal is received."""
        for batch in batches:
            self.interrupt_evaluation()
            yield batch

    def interrupt_evaluation(self) -> None:
        """Raises EvaluationInterrupted on all ranks if one has received a signal."""
        if self.pending_signal():
            raise EvaluationInterrupted

    def raise_if_signaled(self, step: int, steps: int) -> None:
        """Raises SignalInterrupt if a signal was received during training, its last step and validation included."""
        if received := self.pending_signal():
            ignore_repeated_signals()
            raise SignalInterrupt(
                f"interrupted by {received.name} at step {step} of {steps}; checkpoint saved. "
                "Run the same command to resume.",
                EXIT_CODES[received],
                received,
            )

    def pending_signal(self) -> signal.Signals | None:
        """Returns the signal that any rank has received, or None."""
        number = ranks.all_reduce_max(self.received_signal or 0)
        return signal.Signals(number) if number else None

    def _handle_signal(self, number: int, frame: FrameType | None) -> None:
        received = signal.Signals(number)
        if number == signal.SIGINT and (not self.is_training or self.received_signal == signal.SIGINT):
            raise KeyboardInterrupt
        if not self.is_training:
            ignore_repeated_signals()
            raise SignalInterrupt(
                f"interrupted by {received.name}. Run the same command to resume.",
                EXIT_CODES[received],
                received,
            )
        self.received_signal = received
