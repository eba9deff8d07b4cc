"""Times the parts of a few training steps for krill-plan, which plan.measure=true asks for."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from krill.resources import read_waited_seconds

WARMUP_STEPS = 3
"""Steps that are not counted: the first allocations, and the optimizer's state."""

MIN_STEPS, MAX_STEPS = 5, 100
"""The number of steps that are timed."""

ENOUGH_SECONDS, MAX_SECONDS = 3.0, 30.0
"""The time after which no more steps than MIN_STEPS are timed, and after which there need be only one."""

MIN_COUNTED_SHARE = 0.1
"""The share of a time that is counted at least, whatever was waited."""


@dataclass
class StepSample:
    """The seconds of one step, without those in which this process was ready to run and had no core."""

    passes: float
    """Forward and backward passes, and the gradient norm."""
    optimizer: float
    step: float
    """All of it, with the rows that are loaded for it."""
    wall: float
    """All of it, as it was."""


@dataclass
class StepTimer(TrainerCallback):
    """Ends the training after enough steps; `samples` has those after the warm-up."""

    device: torch.device
    first_step_at: float | None = None
    """When the first step began, by time.time()."""
    waited_before: float = 0.0
    """The seconds that this process waited for a core until then."""
    warmup_seconds: float = 0.0
    """The seconds of the first WARMUP_STEPS steps, in which the model is compiled."""
    samples: list[StepSample] = field(default_factory=list)
    _marks: list[tuple[float, float]] = field(default_factory=list)
    """The beginning of the step, and before and after its optimizer: the clock, and what was waited for a core."""

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.first_step_at is None:
            self.first_step_at = time.time()
            self.waited_before = read_waited_seconds()
        now = self._read_clock()
        if 0 < state.global_step <= WARMUP_STEPS:
            self.warmup_seconds += _subtract(now, self._marks[0])
        elif self._marks:
            begin, before, after = self._marks
            self.samples.append(
                StepSample(
                    passes=_subtract(before, begin),
                    optimizer=_subtract(after, before),
                    step=_subtract(now, begin),
                    wall=now[0] - begin[0],
                )
            )
        self._marks = [now]
        if self._has_enough():
            control.should_training_stop = True

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._marks.append(self._read_clock())

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._marks.append(self._read_clock())

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        control.should_save = control.should_evaluate = control.should_log = False

    def _has_enough(self) -> bool:
        seconds = sum(sample.wall for sample in self.samples)
        count = len(self.samples)
        return (
            count >= MAX_STEPS
            or (count >= MIN_STEPS and seconds >= ENOUGH_SECONDS)
            or (count > 0 and seconds >= MAX_SECONDS)
        )

    def _read_clock(self) -> tuple[float, float]:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter(), read_waited_seconds()


def _subtract(end: tuple[float, float], start: tuple[float, float]) -> float:
    """Returns the seconds between two marks, without those that were waited for a core."""
    seconds = end[0] - start[0]
    return max(MIN_COUNTED_SHARE * seconds, seconds - (end[1] - start[1]))
