"""A run goes on with what is set otherwise than at its last start: listed, or refused unless it is allowed."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from faults import train_and_signal
from trainings import assert_same_result, read_metrics_without_clock

from krill.runs.record import read_metrics, read_status


@pytest.fixture
def stopped(krill_train: Any, capsys: pytest.CaptureFixture[str]) -> Path:
    """A run that was stopped after its second step of four."""
    assert train_and_signal(krill_train, signal.SIGTERM, 2) == 75
    capsys.readouterr()
    (run,) = krill_train.runs()
    return run


def test_how_often_it_saves_is_listed_and_changes_nothing(
    krill_train: Any, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krill_train("save_every=1") == 0
    told = capsys.readouterr().err
    assert "changed     save_every=1 (was 2)" in told
    assert told.count("changed  ") == 1
    assert "rounding" not in told
    assert krill_train("output=whole") == 0
    assert read_metrics_without_clock(stopped) == read_metrics_without_clock(krill_train.outputs / "whole")


def test_another_split_of_a_step_is_the_same_run_but_for_rounding(
    krill_train: Any, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split = ("batch.micro_batch_size=1", "batch.gradient_accumulation_steps=2", "hardware.attention=sdpa")
    assert krill_train(*split) == 0
    told = capsys.readouterr().err
    assert "changed     batch.micro_batch_size=1 (was 2)" in told
    assert "changed     hardware.attention=sdpa (was auto)" in told
    assert "but for rounding, not to the bit" in told
    assert krill_train("output=whole") == 0
    mine, theirs = (
        [line["loss"] for line in read_metrics(run) if "loss" in line]
        for run in (stopped, krill_train.outputs / "whole")
    )
    assert len(mine) == 4
    assert mine == pytest.approx(theirs, rel=1e-5)


def test_nothing_is_listed_where_nothing_changed(
    krill_train: Any, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krill_train() == 0
    assert "changed  " not in capsys.readouterr().err
    assert krill_train("output=whole") == 0
    assert_same_result(stopped, krill_train.outputs / "whole")


def test_more_rows_a_step_are_another_run(krill_train: Any, stopped: Path) -> None:
    assert krill_train("batch.gradient_accumulation_steps=2") == 0
    assert sorted(krill_train.states()) == ["finished", "stopped"]


def test_what_determines_the_result_is_refused_unless_it_is_allowed(
    krill_train: Any, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krill_train(f"resume={stopped}", "lr=1e-4") == 2
    assert "to go on in it with this one resume_changed=true" in capsys.readouterr().err
    assert (read_status(stopped) or {})["state"] == "stopped"

    assert krill_train(f"resume={stopped}", "lr=1e-4", "resume_changed=true") == 0
    told = capsys.readouterr().err
    assert "changed     lr=0.0001 (was 0.003)" in told
    assert "resuming from step 2" in told
    rates = [line["lr"] for line in read_metrics(stopped) if "loss" in line]
    assert min(rates[:2]) > 5e-4 > max(rates[2:])


def test_it_must_be_said_which_run(
    krill_train: Any, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krill_train("resume_changed=true", "lr=1e-4") == 2
    assert "resume=<folder>" in capsys.readouterr().err
    assert krill_train.runs() == [stopped]
