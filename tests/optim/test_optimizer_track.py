"""The yardstick for optimizers computes the step at a loss, compares rows by chance, and measures nothing twice."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from compositions import compose

from krill.config.schema import TrainConfig
from krill.config.validation import validate_config

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "optimizer_track.py"


@pytest.fixture(scope="module")
def track() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("optimizer_track", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def measure(
    track: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[list[str], dict[str, Any]]]:
    """measure("--seeds", "2"): the trained runs and the result file, where no run is really trained."""
    trained: list[str] = []

    def measure_seed(runner: Any, row: Any, seed: int) -> dict[str, Any]:
        trained.append(f"{row.variant} {row.lr:g} {seed}")
        step = 40 if row.variant == "muon_moonlight" else 60
        losses = [[20, 4.0], [step, 3.0 - seed / 100], [80, 2.5 - row.lr]]
        return {"curve": losses, "diverged": False}

    monkeypatch.setattr(track.Runner, "measure_seed", measure_seed)
    monkeypatch.setattr(
        track.Runner,
        "measure_step",
        lambda runner, size, overrides: 2.0 if "optimizer=adamw" in overrides else 1.0,
    )
    monkeypatch.setattr(track.PreloadedServer, "start", lambda modules: nullcontext())
    result = tmp_path / "result.json"

    def run(*arguments: str) -> tuple[list[str], dict[str, Any]]:
        trained.clear()
        monkeypatch.setattr(
            sys,
            "argv",
            ["optimizer_track.py", "--folder", str(tmp_path), "--result", str(result), *arguments],
        )
        track.main()
        return list(trained), json.loads(result.read_text(encoding="utf-8"))

    return run


def test_every_variant_and_size_is_a_configuration(track: ModuleType) -> None:
    """A typing error in one would be noticed after the rows before it were measured."""
    size = track.SIZES["4m"].model
    for overrides in track.VARIANTS.values():
        validate_config(TrainConfig, compose("train", *size, *track.SETTING, *overrides))


@pytest.mark.parametrize(
    ("curve", "step"),
    [
        ([(10, 4.0), (20, 3.0)], 15.0),
        ([(10, 4.0), (20, 3.5), (30, 3.0)], 20.0),
        ([(10, 4.0), (20, 3.4), (30, 3.8)], 10 + 10 * 0.5 / 0.6),
        ([(10, 3.2), (20, 3.0)], 10.0),
        ([(10, 4.0), (20, 3.6)], None),
        ([], None),
    ],
)
def test_the_step_is_that_of_the_first_crossing(
    track: ModuleType, curve: Sequence[tuple[int, float]], step: float | None
) -> None:
    assert track.interpolate_step(curve, 3.5) == (None if step is None else pytest.approx(step))


def test_welchs_test_gives_a_published_p_value(track: ModuleType) -> None:
    """t = -2.46 with 25 degrees of freedom: the first example of Wikipedia's article on it."""
    one = [27.5, 21.0, 19.0, 23.6, 17.0, 17.9, 16.9, 20.1, 21.9, 22.6, 23.1, 19.6, 19.0, 21.7, 21.4]
    other = [27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0, 24.8, 20.2, 21.9, 22.1, 22.9, 20.5, 24.4]
    assert track.compute_welch_p_value(one, other) == pytest.approx(0.021, abs=5e-4)
    assert track.compute_welch_p_value(other, one) == track.compute_welch_p_value(one, other)


def test_welchs_test_of_too_few_or_of_equal_values(track: ModuleType) -> None:
    assert track.compute_welch_p_value([1.0], [2.0, 3.0]) is None
    assert track.compute_welch_p_value([1.0, 1.0], [1.0, 1.0]) == 1.0
    assert track.compute_welch_p_value([1.0, 1.0], [2.0, 2.0]) == 0.0


def make_run(*losses: float, diverged: bool = False) -> dict[str, Any]:
    return {"curve": [[10 * number, loss] for number, loss in enumerate(losses, 1)], "diverged": diverged}


def test_a_row_beside_the_reference(track: ModuleType) -> None:
    reference = track.summarize([make_run(4.0, 3.0, 2.0), make_run(4.0, 3.2, 2.2)], 3.0)
    figures = track.describe(
        track.summarize([make_run(3.0, 2.0, 1.0), make_run(3.2, 2.2, 1.2)], 3.0), reference
    )
    assert (figures["seeds"], figures["reached"]) == (2, 2)
    assert figures["steps"] == pytest.approx((10 + 12) / 2)
    assert figures["steps_deviation"] == pytest.approx(2**0.5)
    assert figures["ratio"] == pytest.approx(11 / 21)
    assert figures["loss_ratio"] == pytest.approx(1.1 / 2.1)
    assert 0 < figures["p"] < 0.05


def test_a_seed_that_misses_the_target_leaves_no_mean(track: ModuleType) -> None:
    """The mean of those that reach it would be too good."""
    reference = track.summarize([make_run(4.0, 3.0)] * 2, 3.0)
    figures = track.describe(track.summarize([make_run(3.0, 2.9), make_run(3.9, 3.1)], 3.0), reference)
    assert (figures["reached"], figures["steps"], figures["ratio"], figures["p"]) == (1, None, None, None)
    assert figures["loss"] == pytest.approx(3.0)


def test_a_seed_that_diverges_leaves_no_loss(track: ModuleType) -> None:
    reference = track.summarize([make_run(4.0, 3.0)] * 2, 3.0)
    figures = track.describe(
        track.summarize([make_run(3.0, 2.9), make_run(9.0, diverged=True)], 3.0), reference
    )
    assert (figures["loss"], figures["loss_p"]) == (None, None)


def test_the_cost_is_the_median_of_paired_ratios(track: ModuleType) -> None:
    assert track.compute_cost([(1.0, 1.1), (4.0, 4.8), (2.0, 9.0)]) == pytest.approx(1.2)


def test_what_was_measured_is_kept_and_not_measured_again(
    measure: Callable[..., tuple[list[str], dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    trained, _ = measure("--rows", "adamw", "--seeds", "1")
    assert trained == ["muon_moonlight 0.003 0", "adamw 0.003 0"]
    trained, content = measure("--rows", "adamw", "--lr", "3e-3", "6e-3", "--seeds", "2")
    assert trained == [
        "adamw 0.006 0", "muon_moonlight 0.003 1", "adamw 0.003 1", "adamw 0.006 1",
    ]  # fmt: skip
    assert [cost["cost"] for cost in content["costs"]] == [2.0]
    assert len(content["rows"]) == 3

    capsys.readouterr()
    trained, again = measure()  # only the table
    assert trained == []
    assert again == content
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in table[2:]] == [
        ["adamw", "0.003"], ["adamw", "0.006"], ["muon_moonlight", "0.003"],
    ]  # fmt: skip


def test_a_defined_variant_keeps_its_overrides(
    measure: Callable[..., tuple[list[str], dict[str, Any]]],
) -> None:
    definition = ("--define", "no_warmup", "optimizer=adamw", "scheduler.warmup=0")
    measure(*definition, "--seeds", "1")
    trained, content = measure("--rows", "no_warmup", "--seeds", "2")
    assert trained == ["muon_moonlight 0.003 1", "no_warmup 0.003 1"]
    assert content["rows"][-1]["overrides"] == ["optimizer=adamw", "scheduler.warmup=0"]
    with pytest.raises(SystemExit, match="--define no_warmup"):
        measure("--define", "no_warmup", "optimizer=muon_pto")
    with pytest.raises(SystemExit, match="unknown lion"):
        measure("--rows", "lion")
