"""Times the parts of a few training steps for krill-plan, which plan.measure=true asks for."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

WARMUP_STEPS = 3
"""Steps that are not counted: the first allocations, and the optimizer's state."""

MIN_STEPS, MAX_STEPS = 5, 100
"""The number of steps that are timed."""

ENOUGH_SECONDS, MAX_SECONDS = 3.0, 30.0
"""The time after which no more steps than MIN_STEPS are timed, and after which there need be only one."""

MIN_COUNTED_SHARE = 0.1
"""The share of a time that is counted at least, whatever was waited."""

THREADS = Path("/proc/self/task")


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
    samples: list[StepSample] = field(default_factory=list)
    _marks: list[tuple[float, float]] = field(default_factory=list)
    """The beginning of the step, and before and after its optimizer: the clock, and what was waited for a core."""

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.first_step_at is None:
            self.first_step_at = time.time()
        now = self._read_clock()
        if state.global_step > WARMUP_STEPS:
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
        return time.perf_counter(), read_waited_seconds() / torch.get_num_threads()


def _subtract(end: tuple[float, float], start: tuple[float, float]) -> float:
    """Returns the seconds between two marks, without those that were waited for a core."""
    seconds = end[0] - start[0]
    return max(MIN_COUNTED_SHARE * seconds, seconds - (end[1] - start[1]))


def read_waited_seconds() -> float:
    """Returns the seconds in which threads of this process were ready to run and had no core; 0 if not on Linux."""
    waited = 0
    for schedule in _read_schedules():
        fields = schedule.split()
        waited += int(fields[1]) if len(fields) == 3 else 0
    return waited / 1e9


def _read_schedules() -> Iterator[str]:
    """Yields the times of each thread: nanoseconds that it ran and that it waited, and the number of its slices."""
    try:
        threads = os.listdir(THREADS)
    except OSError:
        return
    for thread in threads:
        try:
            yield (THREADS / thread / "schedstat").read_text(encoding="ascii")
        except OSError:  # the thread has ended, or the kernel counts nothing
            continue
