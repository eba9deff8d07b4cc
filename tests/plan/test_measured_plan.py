"""krill-plan plan.measure=true runs a few real steps in a process of its own; they count now and in later plans."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from console import is_empty

from krill.cli import app, plan
from krill.errors import REQUEUE, KrillError
from krill.launch import measurement
from krill.plan.timing import TimedSize, TimedTraining
from krill.signals import EXIT_CODES
from krill.training.metrics import step_timer

SMALL = (
    "model=llama_pico", "sequence_len=64", "batch.micro_batch_size=4", "steps=50", "device=cpu", "format=json",
    "tokenizer.vocab_size=300",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the measurements; the working directory is an empty one."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("KRILL_CALIBRATION", str(tmp_path / "kept"))
    return tmp_path / "kept"


def run_plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert app.main("plan", plan.run_task, arguments) == 0
    values: dict[str, Any] = json.loads(capsys.readouterr().out)
    return values


def answer_with(monkeypatch: pytest.MonkeyPatch, seconds: float) -> list[Any]:
    """Replaces the process that measures; returns the arguments of its calls."""
    calls = []

    def time_training(config: Any, sizes: Any, *others: Any) -> TimedTraining:
        calls.append((config, sizes, *others))
        timed = []
        for rows, passes in sizes:
            each = seconds * rows / 4
            sample = {"passes": each, "optimizer": 0.0, "step": each, "wall": each}
            timed.append(TimedSize(rows, passes, [sample], 10**9))
        return TimedTraining(timed, startup=4.0)

    monkeypatch.setattr(measurement, "time_training", time_training)
    return calls


def test_what_is_measured_counts_now_and_in_later_plans(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assumed = run_plan(capsys, *SMALL)
    assert "on this machine" not in assumed["seconds"]["source"]
    calls = answer_with(monkeypatch, seconds=2.0)
    measured = run_plan(capsys, *SMALL, "plan.measure=true")
    assert [call[1] for call in calls] == [[(1, 1), (4, 1)]]
    assert measured["seconds"]["steps"] == pytest.approx(100)
    assert measured["memory"]["peak"] is not None
    assert measured["calibration"]["rows"] == [1, 4]
    assert Path(measured["calibration"]["file"]).parent == folder
    later = run_plan(capsys, *SMALL)
    assert later["seconds"] == measured["seconds"]
    assert "calibration" not in later
    other = run_plan(capsys, *SMALL, "sequence_len=128")
    assert other["seconds"]["source"] == "from 1 run on this machine"
    assert other["seconds"]["status"] == "interpolated"
    assert is_empty(Path.cwd())


def test_a_failed_measurement_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> TimedTraining:
        raise KrillError("plan.measure=true: the training was killed by SIGKILL: no output")

    monkeypatch.setattr(measurement, "time_training", fail)
    assert app.main("plan", plan.run_task, (*SMALL, "plan.measure=true")) == 1
    assert "was killed by SIGKILL" in capsys.readouterr().err
    assert app.main("plan", plan.run_task, (*SMALL, "plan.measure=true", "plan.device=h100")) == 2
    assert "leave plan.device out" in capsys.readouterr().err
    assert app.main("plan", plan.run_task, (*SMALL, "plan.measure=true", "budget=1h")) == 2
    assert "leave budget= out" in capsys.readouterr().err
    assert not folder.exists()


def test_an_interrupted_measurement_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders: list[Path] = []

    def interrupt(_: Any, log: Path) -> int:
        folders.append(log.parent)
        os.kill(os.getpid(), signal.SIGTERM)
        return 0

    monkeypatch.setattr(measurement, "_run_process", interrupt)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        assert app.main("plan", plan.run_task, (*SMALL, "plan.measure=true")) == REQUEUE
    finally:
        for number in EXIT_CODES:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else handler)
    assert "plan.measure=true: interrupted by SIGTERM; nothing was kept" in capsys.readouterr().err
    assert [path.exists() for path in folders] == [False]
    assert not folder.exists()


@pytest.mark.slow
def test_real_steps_of_a_miniature(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = set(sys.modules)
    measured = run_plan(capsys, *SMALL, "plan.measure=true")
    assert "krill.training.run" not in set(sys.modules) - loaded
    calibration = measured["calibration"]
    assert calibration["rows"] == [1, 4]
    assert step_timer.MIN_STEPS * 2 <= calibration["steps"] <= step_timer.MAX_STEPS * 2
    assert all(value >= 0 for value in calibration["seconds"].values())
    assert calibration["seconds"]["optimizer"] > 0
    assert calibration["startup"] > 0
    assert 0 <= calibration["waited"] < 1
    small, large = calibration["peaks"]
    assert 10**8 < small["measured"] <= large["measured"]
    assert measured["seconds"]["status"] == "measured"
    assert is_empty(Path.cwd())


def test_a_training_that_fails_is_reported_with_its_reason(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / measurement.LOG
    code = measurement._run_process([sys.executable, "-c", "raise SystemExit('no such kernel')"], log)
    with pytest.raises(KrillError, match="ended with exit code 1: no such kernel"):
        measurement._read_result(tmp_path, code)
    (tmp_path / measurement.RESULT).write_text('{"error": "out of memory with 4 rows"}')
    with pytest.raises(KrillError, match=r"plan\.measure=true: out of memory with 4 rows"):
        measurement._read_result(tmp_path, code)
