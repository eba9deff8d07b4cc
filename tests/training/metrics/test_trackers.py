"""Tests that configured trackers get the metrics, and that nothing else is uploaded."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from krill.extras import format_install_command
from krill.runs.record import read_metrics
from krill.training.metrics import trackers


def test_tensorboard_gets_every_metric(krill_train: Any) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert krill_train("trackers=[tensorboard]", "steps=2", "eval_every=2") == 0
    (run,) = krill_train.runs()
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    lines = read_metrics(run)
    for key in ("loss", "grad_norm", "tokens_per_second", "update_rms/matrices", "lr/vectors"):
        expected = {line["step"]: line[key] for line in lines if key in line}
        assert {event.step: event.value for event in events.Scalars(f"train/{key}")} == pytest.approx(
            expected, rel=1e-6
        )
    assert events.Scalars("eval/bits_per_byte")[0].value == pytest.approx(
        lines[-1]["eval_bits_per_byte"], rel=1e-6
    )


def test_a_missing_tracker_is_an_error_before_anything_is_written(
    krill_train: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None if name == "trackio" else find_spec(name))
    assert krill_train("trackers=[trackio]") == 2
    assert f"trackio is not installed: {format_install_command('trackio')}" in capsys.readouterr().err
    assert krill_train.runs() == []


def test_nothing_is_uploaded_by_default(
    make_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_PROJECT", "WANDB_DIR", "TENSORBOARD_LOGGING_DIR"):
        monkeypatch.delenv(name, raising=False)
    arguments = trackers.build_tracker_arguments(make_config(), tmp_path)
    assert arguments["report_to"] == "none"
    arguments = trackers.build_tracker_arguments(make_config("trackers=[trackio]", "name=a"), tmp_path)
    assert arguments["report_to"] == ["trackio"]
    assert arguments["project"] == "krill"
    assert arguments["run_name"] == f"a/{tmp_path.name}"
    assert (arguments["trackio_space_id"], arguments["trackio_static_space_id"]) == (None, False)


def test_an_unknown_tracker_is_refused(krill_train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert krill_train("trackers=[mlflow]") == 2
    assert "trackers" in capsys.readouterr().err
