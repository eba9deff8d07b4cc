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

THREADS = Path("/proc/self/task")


@dataclass
class StepSample:
    """The seconds of one step."""

    passes: float
    """Forward and backward passes, and the gradient norm."""
    optimizer: float
    step: float
    """All of it, with the rows that are loaded for it."""
    waited: float
    """The share of the time in which this process was ready to run and other processes had its core."""


@dataclass
class StepTimer(TrainerCallback):
    """Ends the training after enough steps; `samples` has those after the warm-up."""

    device: torch.device
    first_step_at: float | None = None
    """When the first step began, by time.time()."""
    samples: list[StepSample] = field(default_factory=list)
    _marks: list[float] = field(default_factory=list)
    _runs: tuple[float, float] = (0.0, 0.0)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.first_step_at is None:
            self.first_step_at = time.time()
        now = self._read_clock()
        if self._marks:
            self._add_sample(state.global_step, now)
        self._marks, self._runs = [now], read_cpu_time()
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

    def _add_sample(self, step: int, now: float) -> None:
        """Adds the step that the next one has ended; `step` of them are done."""
        if step <= WARMUP_STEPS:
            return
        begin, before_optimizer, after_optimizer = self._marks
        ran, waited = (end - start for end, start in zip(read_cpu_time(), self._runs, strict=True))
        share = waited / max(1e-9, ran + waited)
        passes, optimizer = before_optimizer - begin, after_optimizer - before_optimizer
        self.samples.append(StepSample(passes, optimizer, now - begin, share))

    def _has_enough(self) -> bool:
        seconds = sum(sample.step for sample in self.samples)
        count = len(self.samples)
        return (
            count >= MAX_STEPS
            or (count >= MIN_STEPS and seconds >= ENOUGH_SECONDS)
            or (count > 0 and seconds >= MAX_SECONDS)
        )

    def _read_clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def read_cpu_time() -> tuple[float, float]:
    """Returns the seconds that the threads of this process ran, and waited for a core; zeros if it is not Linux."""
    ran = waited = 0
    for schedule in _read_schedules():
        fields = schedule.split()
        if len(fields) == 3:
            ran, waited = ran + int(fields[0]), waited + int(fields[1])
    return ran / 1e9, waited / 1e9


def _read_schedules() -> Iterator[str]:
    try:
        threads = os.listdir(THREADS)
    except OSError:
        return
    for thread in threads:
        try:
            yield (THREADS / thread / "schedstat").read_text(encoding="ascii")
        except OSError:  # the thread has ended, or the kernel counts nothing
            continue
