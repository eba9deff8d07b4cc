"""Tests resuming with a changed configuration: changes are listed, or refused unless they are allowed."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from faults import train_and_signal
from trainings import assert_same_result, read_metrics_without_clock

from krill.runs.json_lines import read_metrics
from krill.runs.record import read_status


@pytest.fixture
def interrupted_run(krill_train: Any, capsys: pytest.CaptureFixture[str]) -> Path:
    """A run interrupted after its second step of four."""
    assert train_and_signal(krill_train, signal.SIGTERM, 2) == 75
    capsys.readouterr()
    (run,) = krill_train.runs()
    return run


def test_a_changed_interval_is_listed_and_changes_no_result(
    krill_train: Any, interrupted_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krill_train("save_every=1") == 0
    output = capsys.readouterr().err
    assert "changed     save_every=1 (was 2)" in output
    assert output.count("changed  ") == 1
    assert "rounding" not in output
    assert krill_train("output=whole") == 0
    assert read_metrics_without_clock(interrupted_run) == read_metrics_without_clock(
        krill_train.outputs / "whole"
    )


def test_another_split_of_a_step_changes_only_rounding(
    krill_train: Any, interrupted_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split = ("batch.micro_batch_size=1", "batch.gradient_accumulation_steps=2", "hardware.attention=sdpa")
    assert krill_train(*split) == 0
    output = capsys.readouterr().err
    assert "changed     batch.micro_batch_size=1 (was 2)" in output
    assert "changed     hardware.attention=sdpa (was auto)" in output
    assert "up to rounding, not to the bit" in output
    assert krill_train("output=whole") == 0
    losses, expected = (
        [line["loss"] for line in read_metrics(run) if "loss" in line]
        for run in (interrupted_run, krill_train.outputs / "whole")
    )
    assert len(losses) == 4
    assert losses == pytest.approx(expected, rel=1e-5)


def test_an_unchanged_configuration_lists_nothing(
    krill_train: Any, interrupted_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krill_train() == 0
    assert "changed  " not in capsys.readouterr().err
    assert krill_train("output=whole") == 0
    assert_same_result(interrupted_run, krill_train.outputs / "whole")


def test_more_rows_per_step_start_another_run(krill_train: Any, interrupted_run: Path) -> None:
    assert krill_train("batch.gradient_accumulation_steps=2") == 0
    assert sorted(krill_train.states()) == ["finished", "stopped"]


def test_a_change_of_the_result_is_refused_unless_allowed(
    krill_train: Any, interrupted_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krill_train(f"resume={interrupted_run}", "lr=1e-4") == 2
    assert "resume_changed=true to resume it with this configuration" in capsys.readouterr().err
    assert (read_status(interrupted_run) or {})["state"] == "stopped"

    assert krill_train(f"resume={interrupted_run}", "lr=1e-4", "resume_changed=true") == 0
    output = capsys.readouterr().err
    assert "changed     lr=0.0001 (was 0.003)" in output
    assert "resuming from step 2" in output
    rates = [line["lr"] for line in read_metrics(interrupted_run) if "loss" in line]
    assert min(rates[:2]) > 5e-4 > max(rates[2:])


def test_resume_changed_requires_a_run(
    krill_train: Any, interrupted_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krill_train("resume_changed=true", "lr=1e-4") == 2
    assert "resume=<folder>" in capsys.readouterr().err
    assert krill_train.runs() == [interrupted_run]
