"""Tests that a run ends by its validation loss, also when it was interrupted and resumed."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from trainings import assert_same_result

from krill.config.schema import EarlyStoppingConfig
from krill.runs import checkpoints
from krill.runs.json_lines import read_metrics
from krill.runs.record import read_status
from krill.training.callbacks.early_stopping import get_stop_reason

TO_REACH = ("steps=12", "eval_every=2", "save_every=100")


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ([], None),
        ([5.0, 4.0, 3.1], None),
        ([5.0, 4.0, 3.0], "reached stop.target_loss=3"),
        ([4.0, 4.5], None),
        ([4.0, 4.5, 4.2], "the last 2 validations were not below 4.0000"),
        ([4.0, 4.0, 4.0], "not below"),
        ([5.0, 4.0, 4.5, 3.9], None),
    ],
)
def test_reason_to_stop(losses: list[float], message: str | None) -> None:
    lines = [{"step": step, "eval_loss": loss} for step, loss in enumerate(losses)]
    stop = EarlyStoppingConfig(target_loss=3.0, target=None, patience=2)
    reason = get_stop_reason(stop, "eval_loss", lines)
    assert (message is None) == (reason is None)
    assert (message or "") in (reason or "")
    never = EarlyStoppingConfig(target_loss=None, target=None, patience=None)
    assert get_stop_reason(never, "eval_loss", lines) is None


@pytest.mark.parametrize(
    ("metric", "values", "message"),
    [
        ("english_pairs/accuracy", [0.5, 0.6], None),
        ("english_pairs/accuracy", [0.5, 0.7], "english_pairs/accuracy 0.7000 has reached stop.target=0.7"),
        ("english_pairs/accuracy", [0.6, 0.6, 0.5], "the last 2 values of english_pairs/accuracy were not above 0.6"),
        ("text/bits_per_byte", [3.0, 2.5, 2.0], None),
        ("text/bits_per_byte", [2.0, 0.6], "reached stop.target=0.7"),
        ("text/bits_per_byte", [2.0, 2.5, 2.1], "were not below 2.0"),
    ],
)  # fmt: skip
def test_reason_to_stop_by_a_score(metric: str, values: list[float], message: str | None) -> None:
    lines = [{"step": step, metric: value} for step, value in enumerate(values)]
    stop = EarlyStoppingConfig(target_loss=9.0, target=0.7, patience=2)
    reason = get_stop_reason(stop, metric, lines)
    assert (message is None) == (reason is None)
    assert (message or "") in (reason or "")
    assert (
        get_stop_reason(stop, metric, [*lines, {"step": 9, "loss": 1.0}]) is None
    )  # not measured at this step


def _find_target(krill_train: Any) -> tuple[str, int]:
    """Returns an override with a target that a run of twelve steps reaches, and the step at which it does."""
    assert krill_train(*TO_REACH, "name=without_target") == 0
    lines = [line for line in read_metrics(krill_train.runs("without_target")[0]) if "eval_loss" in line]
    assert lines[2]["eval_loss"] > lines[3]["eval_loss"] > lines[4]["eval_loss"]
    return f"stop.target_loss={lines[3]['eval_loss'] + 1e-6}", lines[3]["step"]


def test_a_run_finishes_at_its_target(krill_train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    override, step = _find_target(krill_train)
    assert krill_train(*TO_REACH, override) == 0
    (run,) = krill_train.runs()
    status = read_status(run) or {}
    assert status["state"] == "finished"
    assert status["metrics"]["step"] == step == read_metrics(run)[-1]["step"]
    assert "reached stop.target_loss" in status["metrics"]["stopped_by"]
    assert [checkpoints.parse_step(path) for path in checkpoints.list_checkpoints(run / "checkpoints")] == [
        step
    ]
    assert (run / "model" / "model.safetensors").exists()
    assert f"stopping    at step {step} of 12: validation loss" in capsys.readouterr().err


def test_a_stopped_run_killed_before_its_export_does_not_train_further(
    krill_train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    override, step = _find_target(krill_train)
    assert krill_train(*TO_REACH, override) == 0
    (uninterrupted,) = krill_train.runs()

    def send_sigterm(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr("krill.training.run.save_final_model", send_sigterm)
        assert krill_train(*TO_REACH, override) == 75
    assert krill_train(*TO_REACH, override) == 0
    resumed: Path = krill_train.runs()[-1]
    assert resumed != uninterrupted
    assert_same_result(resumed, uninterrupted)
    assert (read_status(resumed) or {})["metrics"]["step"] == step


def test_a_run_ends_when_patience_runs_out(krill_train: Any) -> None:
    assert krill_train(*TO_REACH, "optimizer=adamw", "lr=3", "eval_every=1", "stop.patience=2") == 0
    (run,) = krill_train.runs()
    losses = [line["eval_loss"] for line in read_metrics(run) if "eval_loss" in line]
    best = losses.index(min(losses))
    assert len(losses) == best + 3 < 12
    assert "stop.patience=2" in (read_status(run) or {})["metrics"]["stopped_by"]
