"""A signal during a validation, or after the last step, loses nothing: the resumed run ends the same."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from trainings import assert_same_result, list_checkpoint_steps

from krill.runs.json_lines import read_metrics
from krill.runs.record import read_status
from krill.training.callbacks.signals import StopOnSignal


def list_validated_steps(run: Path) -> list[int]:
    return [line["step"] for line in read_metrics(run) if "eval_loss" in line]


@contextmanager
def signal_in_validation(number: int, nth: int, batch: int = 1) -> Iterator[list[int]]:
    """Sends a signal before the given batch of the nth validation; yields a list of the validation of each batch."""
    original, served, calls = StopOnSignal.iterate_until_signal, [], []

    def iterate_until_signal(self: StopOnSignal, batches: Any) -> Any:
        calls.append(None)
        for index, item in enumerate(original(self, count_batches(batches))):
            yield item
            if len(calls) == nth and index + 1 == batch:
                os.kill(os.getpid(), number)

    def count_batches(batches: Any) -> Any:
        for item in batches:
            served.append(len(calls))
            yield item

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopOnSignal, "iterate_until_signal", iterate_until_signal)
        yield served


@pytest.mark.parametrize(
    ("number", "code", "nth", "extra_overrides", "step"),
    [
        (signal.SIGTERM, 75, 1, ("steps=4", "eval_every=2", "save_every=3"), 2),
        (signal.SIGINT, 130, 2, ("steps=4", "eval_every=2", "save_every=3"), 4),
        (signal.SIGTERM, 75, 1, ("steps=4", "eval_every=3", "save_every=1", "log_every=3"), 3),
        (signal.SIGUSR1, 75, 1, ("steps=4", "eval_every=100", "save_every=100"), 4),
    ],
    ids=["between two steps", "in the last step", "at a step that is saved", "after the last step"],
)
def test_signal_in_a_validation_ends_the_run_at_the_next_batch(
    number: int, code: int, nth: int, extra_overrides: tuple[str, ...], step: int, krill_train: Any,
    reference_run: Callable[..., Path], capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    overrides = (*extra_overrides, "batch.micro_batch_size=1")
    undisturbed = reference_run(*overrides)
    with signal_in_validation(number, nth) as served:
        assert krill_train(*overrides) == code
    assert served.count(nth) == 2, "the first batch, and the one being served when the signal was noticed"
    (run,) = krill_train.runs()
    assert list_checkpoint_steps(run)[-1] == step
    assert step not in list_validated_steps(run)
    assert not (run / "model").exists()

    capsys.readouterr()
    assert krill_train(*overrides) == 0
    assert f"resuming from step {step}" in capsys.readouterr().err
    assert_same_result(run, undisturbed, has_same_trainer_state=step < 4)
    assert list_validated_steps(run) == list_validated_steps(undisturbed)
    assert (read_status(run) or {})["best"] == (read_status(undisturbed) or {})["best"]


def test_signal_in_the_validation_of_a_resumed_run_trains_no_step(
    krill_train: Any, reference_run: Callable[..., Path]
) -> None:
    overrides = ("steps=4", "eval_every=2", "save_every=3")
    undisturbed = reference_run(*overrides)
    for _ in range(2):
        with signal_in_validation(signal.SIGTERM, 1):
            assert krill_train(*overrides) == 75
        (run,) = krill_train.runs()
        assert list_checkpoint_steps(run) == [2]
        assert [line["step"] for line in read_metrics(run)] == [1, 2]
    assert krill_train(*overrides) == 0
    assert_same_result(run, undisturbed)


def test_signal_while_the_model_is_written_trains_no_step_again(
    krill_train: Any, reference_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = reference_run()
    with monkeypatch.context() as patch:
        patch.setattr("krill.training.finish.export_model", lambda *_: os.kill(os.getpid(), 15))
        assert krill_train() == 75
    (run,) = krill_train.runs()
    assert not (run / "model").exists()
    with monkeypatch.context() as patch:
        patch.setattr("krill.training.trainer.KrillTrainer.training_step", None)
        assert krill_train() == 0
    assert not (run / ".model.partial").exists()
    assert_same_result(run, undisturbed)
