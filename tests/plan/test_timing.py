"""Timed steps and finished runs correct the plans that follow: their time, its range, and the memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from compositions import load_config
from planned_models import CPU

from krill.config.schema import PlanOptionsConfig
from krill.device_table import get_device
from krill.errors import UsageError
from krill.plan.changes import change_plan
from krill.plan.machine import Machine
from krill.plan.report import format_plan
from krill.plan.run_plan import NO_OPTIONS, RunPlan, build_run_plan
from krill.plan.step_time import STEP_MOMENTS, UNSEEN_SECONDS
from krill.plan.text import TrainingText
from krill.plan.timing import (
    TimedPlan,
    TimedSize,
    TimedTraining,
    build_measurement,
    build_run_measurement,
    choose_sizes,
    compute_waited_share,
    format_measurement,
)
from krill.runs.json_lines import write_jsonl

VOCAB_SIZE = 320
MACHINE = Machine("Some CPU, 2 cores", "2.0")
SMALL = ("steps=1000", "batch.tokens=null", "batch.micro_batch_size=4", "optimizer=adamw")
TEXT = TrainingText(1_000_000, None, "of a test", is_exact=True)


def plan(*overrides: str, device: Any = CPU, machine: Machine | None = MACHINE, **options: Any) -> RunPlan:
    chosen = PlanOptionsConfig.model_validate(NO_OPTIONS.model_dump() | options)
    config = load_config(*(overrides or SMALL))
    return build_run_plan(config, VOCAB_SIZE, device, TEXT, chosen, machine=machine)


def time_steps(passes: float, rows: int, peak: int = 1, waited: float = 0.0) -> TimedSize:
    """Returns five steps, of which the last one is three times as slow; `waited`: the share without a core."""
    samples = [
        {"passes": factor * passes, "optimizer": factor * 0.02, "step": factor * (passes + 0.03),
         "wall": factor * (passes + 0.03) / (1 - waited)}
        for factor in (1.0, 1.0, 1.0, 1.0, 3.0)
    ]  # fmt: skip
    return TimedSize(rows, 1, samples, peak)


def with_measurement(planned: RunPlan, timed: TimedTraining) -> RunPlan:
    """Returns the plan that plan.measure=true prints."""
    return replace(planned, machine=replace(MACHINE, alone=build_measurement(planned, timed)))


TIMED = TimedTraining([time_steps(0.1, 1, peak=10**9), time_steps(0.34, 4, peak=10**9)], startup=5.0)


def test_measured_steps_correct_the_time_and_its_range() -> None:
    corrected = with_measurement(plan(), TIMED)
    time = corrected.time
    assert time is not None
    assert time.parts["steps"] == pytest.approx(1000 * (0.34 + 0.01))
    assert time.parts["optimizer"] == pytest.approx(1000 * 0.02)
    assert time.shortest < time.total < time.longest
    assert time.longest == pytest.approx(1.05 * 3 * time.total)
    assert (time.utilization.status, time.utilization.text) == (
        "measured",
        "measured from 1 run on this machine",
    )
    assert corrected.to_json()["seconds"]["status"] == "measured"
    larger = change_plan(corrected, ("batch.micro_batch_size=8", "batch.gradient_accumulation_steps=2"))
    assert larger is not None
    assert larger.time is not None
    assert larger.time.parts["steps"] == pytest.approx(1000 * (2 * (0.02 + 8 * 0.08) + 0.01))


def test_another_configuration_is_interpolated_and_a_given_mfu_counts_alone() -> None:
    corrected = with_measurement(plan(), TIMED)
    other = change_plan(corrected, ("sequence_len=512",))
    assert other is not None
    assert other.time is not None
    assert other.time.utilization.text == "interpolated from 1 run on this machine"
    assert corrected.time is not None
    assert corrected.time.parts["steps"] < other.time.parts["steps"] < 2.5 * corrected.time.parts["steps"]
    given = with_measurement(plan(mfu=0.5), TIMED)
    assert given.time is not None
    assert given.time.utilization.status == "given"


def test_the_time_in_which_others_had_the_core_widens_the_range_alone() -> None:
    busy = TimedTraining([time_steps(0.1, 1, waited=0.5), time_steps(0.34, 4, waited=0.5)], startup=5.0)
    alone, shared = build_measurement(plan(), TIMED), build_measurement(plan(), busy)
    assert (shared.seconds, shared.step) == (alone.seconds, alone.step)
    assert shared.slowest == pytest.approx(2 * alone.slowest)
    assert compute_waited_share(TIMED) == pytest.approx(0)
    assert compute_waited_share(busy) == pytest.approx(0.5)


def test_the_memory_is_corrected_by_the_measured_peak() -> None:
    planned = plan()
    computed = {name: sum(parts.values()) for name, parts in planned.computed_memory.moments.items()}
    peak = max(size for name, size in computed.items() if name in STEP_MOMENTS)
    measured = [time_steps(0.1, 1, peak=900_000_000), time_steps(0.34, 4, peak=peak + 70_000_000)]
    corrected = with_measurement(planned, TimedTraining(measured, 5.0))
    assert corrected.memory.total == max(computed.values()) + 70_000_000
    less = with_measurement(planned, TimedTraining([time_steps(0.34, 4, peak=peak - 70_000_000)], 5.0))
    moments = {name: sum(parts.values()) for name, parts in less.memory.moments.items()}
    assert max(size for name, size in moments.items() if name in STEP_MOMENTS) == peak - 70_000_000
    assert all(moments[name] == computed[name] for name in moments.keys() - STEP_MOMENTS)  # not measured
    other_batch = change_plan(less, ("batch.micro_batch_size=3",))
    assert other_batch is not None
    assert other_batch.memory == other_batch.computed_memory  # only ever more for another size


def test_what_was_measured_is_printed() -> None:
    planned = plan()
    measurement = build_measurement(planned, TIMED)
    timed = TimedPlan(measurement, (1, 4), 10, 0.2, Path("kept.json"))
    first, busy, kept = format_measurement(timed)
    assert first.startswith(
        "calibration measured here: 2 sizes (1 and 4 rows), 10 steps: 20 ms per pass + 312 ms per 1,000 tokens, "
        "optimizer 20 ms, start-up 5.0 s; steps took 1.00 to 3.00 of that; memory 1 GB, planned"
    )
    assert "other processes had the core 20 % of the time" in busy
    assert kept == "            kept in kept.json"
    assert first in format_plan(planned, timed)


def test_only_a_run_that_fits_on_one_rank_of_this_machine_is_measured() -> None:
    assert choose_sizes(plan()) == [(1, 1), (4, 1)]
    assert choose_sizes(
        plan("steps=5", "batch.micro_batch_size=1", "batch.gradient_accumulation_steps=3")
    ) == [(1, 2)]
    with pytest.raises(UsageError, match=r"leave plan\.device out"):
        choose_sizes(plan(*SMALL, device=get_device("h100"), machine=None))
    with pytest.raises(UsageError, match=r"use hardware\.processes=1"):
        choose_sizes(plan(*SMALL, "hardware.processes=2"))
    with pytest.raises(UsageError, match="does not fit"):
        choose_sizes(plan(*SMALL, device=replace(CPU, memory=10**8)))


def test_a_finished_run_leaves_the_median_of_its_steps(tmp_path: Path) -> None:
    planned = plan()
    tokens = planned.tokens_per_step
    lines = [
        {"step": step, "tokens": step * tokens, "tokens_per_second": tokens / seconds, "memory_gb": 0.75}
        for step, seconds in ((1, 9.0), (11, 0.5), (21, 0.4), (31, 0.5), (41, 2.0))
    ]
    write_jsonl(tmp_path / "metrics.jsonl", lines)
    found = build_run_measurement(planned, tmp_path)
    assert found is not None
    assert (found.kind, found.seconds, found.startup) == ("run", None, None)
    assert (found.step, found.fastest, found.slowest) == (
        pytest.approx(0.5),
        pytest.approx(0.8),
        pytest.approx(4.0),
    )
    assert (found.peaks[0].rows, found.peaks[0].measured) == (4, 750_000_000)
    busy = build_run_measurement(planned, tmp_path, waited=0.2)
    assert busy is not None
    assert (busy.step, busy.fastest) == (pytest.approx(0.5), pytest.approx(0.8))  # the median had its core
    busier = build_run_measurement(planned, tmp_path, waited=0.6)
    assert busier is not None
    assert (busier.step, busier.fastest) == (pytest.approx(0.4 * 3.4 / 4), 1.0)
    again = replace(planned, machine=replace(MACHINE, alone=found.model_copy(update={"startup": 7.0})))
    assert again.time is not None
    assert again.time.parts["steps"] + again.time.parts["optimizer"] == pytest.approx(500, rel=0.02)
    assert again.time.parts["startup"] == 7.0 + UNSEEN_SECONDS["run"]
    write_jsonl(tmp_path / "metrics.jsonl", lines[:3])
    assert build_run_measurement(planned, tmp_path) is None
