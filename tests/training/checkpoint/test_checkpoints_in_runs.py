"""A run goes on from the newest checkpoint that verifies, keeps the best, and loses nothing to a full disk or a
signal that comes late."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from faults import flip_bit, limit_file_size, train_and_signal
from filelock import FileLock
from trainings import assert_same_result, list_checkpoint_steps

from krill.runs import checkpoints
from krill.runs.record import read_metrics, read_status
from krill.training.callbacks.signals import StopOnSignal

EVERY = ("steps=6", "save_every=1", "eval_every=2")


@pytest.fixture
def whole(krill_train: Any) -> Path:
    """A run that nothing stopped."""
    assert krill_train(*EVERY) == 0
    return krill_train.runs()[-1]


@pytest.fixture
def stopped(krill_train: Any, whole: Path) -> Path:
    """One that was stopped after step 4, with checkpoints of steps 2, 3 and 4."""
    assert train_and_signal(krill_train, signal.SIGTERM, 4, *EVERY) == 75
    run = krill_train.runs()[-1]
    assert list_checkpoint_steps(run) == [2, 3, 4]
    return run


# --- going on from what verifies ---------------------------------------------------------------------------

DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "truncated": ("model.safetensors", lambda file: os.truncate(file, 1000)),
    "flipped": ("optimizer.pt", flip_bit),
    "missing": ("scheduler.pt", Path.unlink),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_broken_checkpoint_is_passed_over_and_the_end_is_the_same(
    kind: str, krill_train: Any, whole: Path, stopped: Path
) -> None:
    name, damage = DAMAGES[kind]
    damage(stopped / "checkpoints" / "checkpoint-4" / name)
    assert krill_train(*EVERY) == 0
    told = (stopped / "log.txt").read_text()
    assert f"passed over: runs/llama_pico/{stopped.name}/checkpoints/checkpoint-4/{name}" in told
    assert "going on from step 3" in told
    assert_same_result(stopped, whole)


def test_a_broken_one_that_is_not_saved_again_stays_and_does_not_count(
    krill_train: Any, stopped: Path
) -> None:
    flip_bit(stopped / "checkpoints" / "checkpoint-4" / "optimizer.pt")
    assert krill_train("steps=6", "save_every=5", "keep_checkpoints=2", "keep_best=false") == 0
    assert list_checkpoint_steps(stopped) == [4, 5, 6]


def test_where_none_verifies_it_stops_and_says_how_to_begin_anew(
    capsys: pytest.CaptureFixture[str], krill_train: Any, stopped: Path
) -> None:
    for step in list_checkpoint_steps(stopped):
        flip_bit(stopped / "checkpoints" / f"checkpoint-{step}" / "model.safetensors")
    before = (stopped / "metrics.jsonl").read_bytes()
    for _ in range(2):
        assert krill_train(*EVERY) == 1
        assert "none of the checkpoints there verifies" in capsys.readouterr().err
    assert (stopped / "metrics.jsonl").read_bytes() == before
    assert list_checkpoint_steps(stopped) == [2, 3, 4]
    assert krill_train(*EVERY, "resume=false") == 0
    assert sorted(krill_train.states()) == ["failed", "finished", "finished"]


def test_a_copy_under_the_name_of_another_step_is_not_taken(
    krill_train: Any, whole: Path, stopped: Path
) -> None:
    folder = stopped / "checkpoints"
    shutil.copytree(folder / "checkpoint-2", folder / "checkpoint-5")
    assert krill_train(*EVERY) == 0
    told = (stopped / "log.txt").read_text()
    assert "checkpoint-5 was saved at step 2; rename it checkpoint-2" in told
    assert "going on from step 4" in told
    assert_same_result(stopped, whole)


def test_a_branch_off_a_broken_checkpoint_is_refused(
    krill_train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krill_train("scheduler=constant", "steps=4") == 0
    place = krill_train.runs()[0] / "checkpoints" / "checkpoint-4"
    flip_bit(place / "model.safetensors")
    assert krill_train("scheduler=constant", "steps=6", f"branch={place}") == 1
    told = capsys.readouterr().err
    assert "checkpoint-4/model.safetensors was changed since it was saved" in told
    assert "name another one of that run" in told


def test_a_folder_that_is_being_written_is_not_touched(
    capsys: pytest.CaptureFixture[str], krill_train: Any, stopped: Path
) -> None:
    (stopped / "checkpoints" / checkpoints.PARTIAL_FOLDER).mkdir()  # the other one saves at this moment
    before = sorted(stopped.rglob("*"))
    with FileLock(stopped / ".lock"):
        assert krill_train(*EVERY, f"resume={stopped}") == 2
    assert "is being written by process" in capsys.readouterr().err
    assert sorted(stopped.rglob("*")) == before


# --- the best ----------------------------------------------------------------------------------------------


def losses(run: Path) -> dict[int, float]:
    return {line["step"]: line["eval_loss"] for line in read_metrics(run) if "eval_loss" in line}


RISING = ("steps=8", "save_every=1", "eval_every=2", "keep_checkpoints=1")


@pytest.fixture
def rising(monkeypatch: pytest.MonkeyPatch) -> None:
    """The validation loss is lowest at step 4."""
    means = {2: 3.0, 4: 2.0, 6: 2.5, 8: 2.0}

    def evaluated(self: Any, *_: Any, **__: Any) -> Any:
        metrics = {"eval_loss": means[self.state.global_step], "eval_bits_per_byte": 1.0}
        self.log(dict(metrics))
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    monkeypatch.setattr("krill.training.trainer.KrillTrainer.evaluate", evaluated)


@pytest.mark.usefixtures("rising")
def test_the_best_is_kept_and_recorded(krill_train: Any) -> None:
    assert krill_train(*RISING) == 0
    (run,) = krill_train.runs()
    assert list_checkpoint_steps(run) == [4, 8]
    status = read_status(run) or {}
    assert status["best"] == {"step": 4, "eval_loss": 2.0, "checkpoint": "checkpoints/checkpoint-4"}


@pytest.mark.usefixtures("rising")
def test_unless_it_is_not_asked_for(krill_train: Any) -> None:
    assert krill_train(*RISING, "keep_best=false") == 0
    (run,) = krill_train.runs()
    assert list_checkpoint_steps(run) == [8]
    assert "best" not in (read_status(run) or {})


@pytest.mark.usefixtures("rising")
def test_the_best_is_still_known_when_the_run_goes_on(krill_train: Any) -> None:
    assert krill_train(*RISING) == 0
    assert train_and_signal(krill_train, signal.SIGTERM, 7, *RISING) == 75
    whole, run = krill_train.runs()
    assert krill_train(*RISING) == 0
    assert list_checkpoint_steps(run) == list_checkpoint_steps(whole)
    assert (read_status(run) or {})["best"] == (read_status(whole) or {})["best"]


def test_the_last_step_is_judged_by_the_validation_after_it(krill_train: Any) -> None:
    assert krill_train("steps=5", "save_every=2", "eval_every=100") == 0
    (run,) = krill_train.runs()
    assert (read_status(run) or {})["best"]["step"] == 5


# --- a full disk -------------------------------------------------------------------------------------------


def no_weights(self: Any, output_dir: str, **_: Any) -> None:
    Path(output_dir).mkdir()


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt"])
def test_a_full_disk_at_saving_loses_nothing_and_the_same_command_goes_on(
    file: str, krill_train: Any, whole: Path, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = (stopped / "checkpoints" / "checkpoint-4" / file).stat().st_size
    with limit_file_size(size // 2), pytest.MonkeyPatch.context() as patch:
        if file == "optimizer.pt":  # the weights, which come first, have found room
            patch.setattr("transformers.Trainer.save_model", no_weights)
        assert krill_train(*EVERY) == 1
    told = capsys.readouterr().err
    assert "no room for another checkpoint" in told
    assert "the traceback above" not in told
    assert list_checkpoint_steps(stopped) == [2, 3, 4]
    assert not (stopped / "checkpoints" / checkpoints.PARTIAL_FOLDER).exists()
    assert (read_status(stopped) or {})["state"] == "failed"

    assert krill_train(*EVERY) == 0
    assert_same_result(stopped, whole)


# --- signals that come late --------------------------------------------------------------------------------


@contextmanager
def signal_in_validation(number: int, nth: int, batch: int = 1) -> Iterator[list[int]]:
    """A signal before the given batch of the nth validation; the list grows with each batch that is served."""
    plain, served, calls = StopOnSignal.iterate_until_signal, [], []

    def watch(self: StopOnSignal, batches: Any) -> Any:
        calls.append(None)
        for index, item in enumerate(plain(self, counted(batches))):
            yield item
            if len(calls) == nth and index + 1 == batch:
                os.kill(os.getpid(), number)

    def counted(batches: Any) -> Any:
        for item in batches:
            served.append(len(calls))
            yield item

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopOnSignal, "iterate_until_signal", watch)
        yield served


@pytest.mark.parametrize(
    ("number", "code", "nth", "words", "step"),
    [
        (signal.SIGTERM, 75, 1, ("steps=4", "eval_every=2", "save_every=3"), 2),
        (signal.SIGINT, 130, 2, ("steps=4", "eval_every=2", "save_every=3"), 4),
        (signal.SIGTERM, 75, 1, ("steps=4", "eval_every=3", "save_every=1", "log_every=3"), 3),
        (signal.SIGUSR1, 75, 1, ("steps=4", "eval_every=100", "save_every=100"), 4),
    ],
    ids=["between two steps", "in the last step", "at a step that is saved", "after the last step"],
)
def test_a_signal_in_a_validation_ends_it_at_the_next_batch(
    number: int, code: int, nth: int, words: tuple[str, ...], step: int, krill_train: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = (*words, "batch.micro_batch_size=1")
    assert krill_train(*words) == 0
    (whole,) = krill_train.runs()
    with signal_in_validation(number, nth) as served:
        assert krill_train(*words) == code
    assert served.count(nth) == 2, "one, and the one that was at hand when the signal was seen"
    (run,) = set(krill_train.runs()) - {whole}
    assert list_checkpoint_steps(run)[-1] == step
    assert step not in losses(run)
    assert not (run / "model").exists()

    capsys.readouterr()
    assert krill_train(*words) == 0
    assert f"going on from step {step}" in capsys.readouterr().err
    assert_same_result(run, whole)
    assert list(losses(run)) == list(losses(whole))
    assert (read_status(run) or {})["best"] == (read_status(whole) or {})["best"]


def test_cut_again_where_it_goes_on_nothing_is_trained(krill_train: Any) -> None:
    words = ("steps=4", "eval_every=2", "save_every=3")
    assert krill_train(*words) == 0
    (whole,) = krill_train.runs()
    for _ in range(2):
        with signal_in_validation(signal.SIGTERM, 1):
            assert krill_train(*words) == 75
        (run,) = set(krill_train.runs()) - {whole}
        assert list_checkpoint_steps(run) == [2]
        assert [line["step"] for line in read_metrics(run)] == [1, 2]
    assert krill_train(*words) == 0
    assert_same_result(run, whole)


def test_a_signal_while_the_model_is_written_is_obeyed_and_nothing_is_trained_again(
    krill_train: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krill_train() == 0
    (whole,) = krill_train.runs()
    with monkeypatch.context() as patch:
        patch.setattr("krill.tokenizer.artifact.TokenizerFolder.copy_to", lambda *_: os.kill(os.getpid(), 15))
        assert krill_train() == 75
    (run,) = set(krill_train.runs()) - {whole}
    assert not (run / "model").exists()
    with monkeypatch.context() as patch:
        patch.setattr("krill.training.trainer.KrillTrainer.training_step", None)
        assert krill_train() == 0
    assert not (run / ".model.partial").exists()
    assert_same_result(run, whole)
