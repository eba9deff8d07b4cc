"""The parts of steps are timed after a warm-up, without the time in which the process had no core."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from krill import resources
from krill.config.schema import TrainConfig
from krill.resources import CoreClock, read_waited_seconds
from krill.training.metrics import step_timer
from krill.training.metrics.step_timer import MIN_STEPS, WARMUP_STEPS, StepTimer
from krill.training.run import time_training_steps

STEP = {"begin": 0.5, "passes": 2.0, "optimizer": 1.0}
"""Seconds: loading rows before the step, its passes, its optimizer."""


def run_steps(monkeypatch: pytest.MonkeyPatch, waited: float = 0.0) -> StepTimer:
    """Returns the timer after as many steps as it wants; `waited`: the share of the passes without a core."""
    now = SimpleNamespace(clock=100.0, waited=0.0)
    monkeypatch.setattr(step_timer.time, "perf_counter", lambda: now.clock)
    monkeypatch.setattr(step_timer, "read_waited_seconds", lambda: now.waited)
    timer, state = StepTimer(torch.device("cpu")), SimpleNamespace(global_step=0)
    control: Any = SimpleNamespace(should_training_stop=False)
    arguments: Any = (None, state, control)
    while not control.should_training_stop:
        now.clock += STEP["begin"]
        timer.on_step_begin(*arguments)
        slow = 10.0 if state.global_step < WARMUP_STEPS else 1.0
        now.clock += slow * STEP["passes"]
        now.waited += waited * slow * STEP["passes"]
        timer.on_pre_optimizer_step(*arguments)
        now.clock += STEP["optimizer"]
        timer.on_optimizer_step(*arguments)
        state.global_step += 1
        timer.on_step_end(*arguments)
        assert not control.should_save
    return timer


def test_steps_after_the_warm_up_are_timed_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    timer = run_steps(monkeypatch)
    assert len(timer.samples) == MIN_STEPS
    assert {(one.passes, one.optimizer, one.step, one.wall) for one in timer.samples} == {
        (2.0, 1.0, 3.5, 3.5)
    }
    assert timer.warmup_seconds == pytest.approx(WARMUP_STEPS * 21.5)


def test_the_time_without_a_core_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = run_steps(monkeypatch, waited=0.25).samples[-1]
    assert (sample.passes, sample.optimizer) == (pytest.approx(1.5), pytest.approx(1.0))
    assert (sample.step, sample.wall) == (pytest.approx(3.0), pytest.approx(3.5))


def test_a_clock_can_be_paused_and_counts_the_time_without_a_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = SimpleNamespace(clock=10.0)
    monkeypatch.setattr(resources.time, "monotonic", lambda: now.clock)
    monkeypatch.setattr(resources, "SCHEDULE_FILE", tmp_path / "schedstat")

    def write_schedule(seconds: int) -> None:
        (tmp_path / "schedstat").write_text(f"7 {seconds * 10**9} 3\n")

    write_schedule(2)
    assert read_waited_seconds() == 2.0
    clock = CoreClock()
    now.clock = 14.0
    write_schedule(4)
    with clock.pause():
        now.clock = 24.0
        write_schedule(9)
    now.clock = 25.0
    assert clock.read() == (5.0, 2.0)
    (tmp_path / "schedstat").unlink()
    assert read_waited_seconds() == 0.0


def test_timed_steps_are_those_of_a_training_and_leave_no_result(
    make_config: Callable[..., TrainConfig], prepared_data: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    config = make_config("steps=9", "save_every=100", "eval_every=100", "device=cpu")
    timer = time_training_steps(config, folder, prepared_data.store, prepared_data.tokenizer.folder)
    assert len(timer.samples) == 9 - WARMUP_STEPS - 1
    assert all(one.optimizer > 0 and 0 < one.step <= one.wall for one in timer.samples)
    assert timer.first_step_at is not None
    assert not list(folder.rglob("*.safetensors"))
