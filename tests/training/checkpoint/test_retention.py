"""The checkpoint with the lowest validation loss is kept and recorded beside the newest ones."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from faults import train_and_signal
from trainings import list_checkpoint_steps

from krill.runs.record import read_status

KEEP_ONE = ("steps=8", "save_every=1", "eval_every=2", "keep_checkpoints=1")


@pytest.fixture
def rising_eval_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes step 4 the first of the two validations with the lowest loss."""
    losses = {2: 3.0, 4: 2.0, 6: 2.5, 8: 2.0}

    def evaluate(self: Any, *_: Any, **__: Any) -> Any:
        metrics = {"eval_loss": losses[self.state.global_step], "eval_bits_per_byte": 1.0}
        self.log(dict(metrics))
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    monkeypatch.setattr("krill.training.trainer.KrillTrainer.evaluate", evaluate)


@pytest.mark.usefixtures("rising_eval_loss")
def test_best_checkpoint_is_kept_and_recorded(krill_train: Any) -> None:
    assert krill_train(*KEEP_ONE) == 0
    (run,) = krill_train.runs()
    assert list_checkpoint_steps(run) == [4, 8]
    status = read_status(run) or {}
    assert status["best"] == {"step": 4, "eval_loss": 2.0, "checkpoint": "checkpoints/checkpoint-4"}


@pytest.mark.usefixtures("rising_eval_loss")
def test_best_checkpoint_is_not_kept_with_keep_best_false(krill_train: Any) -> None:
    assert krill_train(*KEEP_ONE, "keep_best=false") == 0
    (run,) = krill_train.runs()
    assert list_checkpoint_steps(run) == [8]
    assert "best" not in (read_status(run) or {})


@pytest.mark.usefixtures("rising_eval_loss")
def test_resumed_run_still_knows_the_best_checkpoint(krill_train: Any) -> None:
    assert krill_train(*KEEP_ONE) == 0
    assert train_and_signal(krill_train, signal.SIGTERM, 7, *KEEP_ONE) == 75
    undisturbed, run = krill_train.runs()
    assert krill_train(*KEEP_ONE) == 0
    assert list_checkpoint_steps(run) == list_checkpoint_steps(undisturbed)
    assert (read_status(run) or {})["best"] == (read_status(undisturbed) or {})["best"]


def test_last_checkpoint_gets_the_loss_of_the_validation_after_it(krill_train: Any) -> None:
    assert krill_train("steps=5", "save_every=2", "eval_every=100") == 0
    (run,) = krill_train.runs()
    assert (read_status(run) or {})["best"]["step"] == 5
