"""The time of a step follows from what was measured: the same configuration, sizes between, and batches."""

from __future__ import annotations

import pytest

from krill.plan.step_time import (
    FAR,
    Calibration,
    Measurement,
    StepEstimate,
    StepSeconds,
    StepWork,
    fit_step_seconds,
)
from krill.plan.step_time import estimate_step as estimate_with

BANDWIDTH = 1e10


def estimate_step(work: StepWork, configuration: str, measurements: list[Measurement]) -> StepEstimate:
    return estimate_with(work, configuration, Calibration(measurements, "cpu", BANDWIDTH))


def make_work(parameters: int = 10**6, tokens: int = 1000, passes: int = 1, **changes: float) -> StepWork:
    values = {
        "per_token": 6.0 * parameters,
        "update_flops": 0.0,
        "update_bytes": 20 * parameters,
        "layers": 4,
    }
    return StepWork(parameters=parameters, tokens=tokens, passes=passes, **(values | changes))  # type: ignore[arg-type]


def measure(
    work: StepWork, speed: float = 1e10, configuration: str = "", kind: str = "steps", spread: float = 1.0,
    startup: float | None = None,
) -> Measurement:  # fmt: skip
    """Returns a measurement of a machine that does `speed` FLOPs per second, 1 ms per layer, 1 GB/s of updates."""
    seconds = StepSeconds(
        per_token=work.per_token / speed, per_pass=1e-3 * work.layers, per_step=2e-3,
        optimizer=work.update_bytes / 1e9 + work.update_flops / (0.5 * speed),
    )  # fmt: skip
    step = (
        work.passes * (seconds.per_pass + work.tokens * seconds.per_token)
        + seconds.per_step
        + seconds.optimizer
    )
    return Measurement(
        kind=kind, time="", configuration=configuration or f"{work.parameters}", group="", work=work,
        seconds=seconds if kind == "steps" else None, step=step, fastest=1 / spread, slowest=spread, startup=startup,
        peaks=(),
    )  # type: ignore[arg-type]  # fmt: skip


def compute_total(work: StepWork, seconds: StepSeconds) -> float:
    passes = work.passes * (seconds.per_pass + work.tokens * seconds.per_token)
    return passes + seconds.per_step + seconds.optimizer


def test_two_sizes_are_a_line_that_noise_does_not_turn() -> None:
    fitted = fit_step_seconds([(100, 0.3), (400, 0.9)], per_step=0.01, optimizer=0.02)
    assert (fitted.per_token, fitted.per_pass) == (pytest.approx(0.002), pytest.approx(0.1))
    steeper = fit_step_seconds([(100, 0.1), (400, 0.9)], per_step=0, optimizer=0)
    assert (steeper.per_token, steeper.per_pass) == (pytest.approx(0.9 / 400), pytest.approx(0))
    falling = fit_step_seconds([(100, 1.0), (400, 0.9)], per_step=0, optimizer=0)
    assert (falling.per_token, falling.per_pass) == (pytest.approx(0.3 * 0.9 / 400), pytest.approx(0.7 * 0.9))
    single = fit_step_seconds([(400, 0.9)], per_step=0, optimizer=0)
    assert (single.per_token, single.per_pass) == (pytest.approx(0.9 / 400), pytest.approx(0))


def test_the_same_configuration_takes_what_it_took_in_any_batch() -> None:
    known = measure(make_work(), configuration="this")
    others = [measure(make_work(parameters), speed=5e10) for parameters in (10**5, 10**7)]
    work = make_work(tokens=500, passes=3)
    estimate = estimate_step(work, "this", [*others, known])
    assert (estimate.status, estimate.runs) == ("measured", 1)
    assert known.seconds is not None
    assert compute_total(work, estimate.seconds) == pytest.approx(compute_total(work, known.seconds))


def test_other_sizes_lie_between_the_measured_ones() -> None:
    measurements = [measure(make_work(10**6), speed=1e10), measure(make_work(10**8), speed=4e10)]
    between = estimate_step(make_work(10**7), "other", measurements)
    assert (between.status, between.runs) == ("interpolated", 2)
    assert between.speed == pytest.approx(2.5e10)
    assert between.fastest < 1 < between.slowest
    beyond = estimate_step(make_work(round(10**8 * FAR * 1.1)), "other", measurements)
    assert (beyond.status, beyond.speed) == ("extrapolated", pytest.approx(4e10))
    assert beyond.slowest > between.slowest


def test_a_finished_run_alone_gives_the_speed_that_explains_its_step() -> None:
    work = make_work(update_flops=1e8)
    run = measure(work, kind="run")
    alone = estimate_step(work, "other", [run])
    assert compute_total(work, alone.seconds) == pytest.approx(run.step, rel=0.02)
    both = estimate_step(work, "other", [run, measure(make_work(2 * 10**6), speed=1e10)])
    assert both.seconds.per_pass == pytest.approx(4e-3)
    assert both.speed == pytest.approx(1e10, rel=0.15)


def test_the_optimizer_is_that_of_its_own_kind_where_it_was_measured() -> None:
    adamw, muon = make_work(), make_work(update_flops=3e8)
    from_adamw = estimate_step(muon, "other", [measure(adamw)]).seconds.optimizer
    assert from_adamw == pytest.approx(20e6 / 1e9 + 3e8 / (1.1 * 1e10))
    from_both = estimate_step(muon, "other", [measure(adamw), measure(muon)]).seconds.optimizer
    assert from_both == pytest.approx(20e6 / 1e9 + 3e8 / (0.5 * 1e10))


def test_of_repeated_measurements_the_faster_ones_count_and_the_others_widen_the_range() -> None:
    quiet = estimate_step(make_work(), "this", [measure(make_work(), configuration="this")])
    repeated = [measure(make_work(), speed, configuration="this") for speed in (1e10, 1e10, 3e9)]
    busy = estimate_step(make_work(), "this", repeated)
    assert (busy.speed, busy.runs) == (pytest.approx(1e10), 3)
    assert busy.slowest == pytest.approx(quiet.slowest / 0.3)
    wide = estimate_step(make_work(), "this", [measure(make_work(), configuration="this", spread=2.0)])
    assert (wide.fastest, wide.slowest) == (pytest.approx(0.97 / 2), pytest.approx(1.05 * 2))
