"""A run resumes from the newest checkpoint that verifies, and loses nothing to a full disk."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults import flip_bit, limit_file_size, train_and_signal
from filelock import FileLock
from trainings import assert_same_result, list_checkpoint_steps

from krill.runs import checkpoints
from krill.runs.record import read_status

EVERY_STEP = ("steps=6", "save_every=1", "eval_every=2")


@pytest.fixture(scope="session")
def undisturbed_run(reference_run: Callable[..., Path]) -> Path:
    return reference_run(*EVERY_STEP)


@pytest.fixture
def interrupted_run(krill_train: Any) -> Path:
    """A run that was interrupted after step 4, with checkpoints of steps 2, 3 and 4."""
    assert train_and_signal(krill_train, signal.SIGTERM, 4, *EVERY_STEP) == 75
    (run,) = krill_train.runs()
    assert list_checkpoint_steps(run) == [2, 3, 4]
    return run


# --- corrupt checkpoints -----------------------------------------------------------------------------------

DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "truncated": ("model.safetensors", lambda file: os.truncate(file, 1000)),
    "flipped": ("optimizer.pt", flip_bit),
    "missing": ("scheduler.pt", Path.unlink),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_corrupt_checkpoint_is_skipped_and_the_result_is_the_same(
    kind: str, krill_train: Any, undisturbed_run: Path, interrupted_run: Path
) -> None:
    name, damage = DAMAGES[kind]
    damage(interrupted_run / "checkpoints" / "checkpoint-4" / name)
    assert krill_train(*EVERY_STEP) == 0
    log = (interrupted_run / "log.txt").read_text()
    assert (
        f"skipping corrupt checkpoint: runs/llama_pico/{interrupted_run.name}/checkpoints/checkpoint-4/{name}"
        in log
    )
    assert "resuming from step 3" in log
    assert_same_result(interrupted_run, undisturbed_run)


def test_corrupt_checkpoint_of_an_unsaved_step_is_kept_and_not_counted(
    krill_train: Any, interrupted_run: Path
) -> None:
    flip_bit(interrupted_run / "checkpoints" / "checkpoint-4" / "optimizer.pt")
    assert krill_train("steps=6", "save_every=5", "keep_checkpoints=2", "keep_best=false") == 0
    assert list_checkpoint_steps(interrupted_run) == [4, 5, 6]


def test_run_without_a_valid_checkpoint_fails_and_says_how_to_start_from_scratch(
    capsys: pytest.CaptureFixture[str], krill_train: Any, interrupted_run: Path
) -> None:
    for step in list_checkpoint_steps(interrupted_run):
        flip_bit(interrupted_run / "checkpoints" / f"checkpoint-{step}" / "model.safetensors")
    before = (interrupted_run / "metrics.jsonl").read_bytes()
    for _ in range(2):
        assert krill_train(*EVERY_STEP) == 1
        assert "none of the checkpoints is valid" in capsys.readouterr().err
    assert (interrupted_run / "metrics.jsonl").read_bytes() == before
    assert list_checkpoint_steps(interrupted_run) == [2, 3, 4]
    assert krill_train(*EVERY_STEP, "resume=false") == 0
    assert sorted(krill_train.states()) == ["failed", "finished"]


def test_copy_named_after_another_step_is_skipped(
    krill_train: Any, undisturbed_run: Path, interrupted_run: Path
) -> None:
    folder = interrupted_run / "checkpoints"
    shutil.copytree(folder / "checkpoint-2", folder / "checkpoint-5")
    assert krill_train(*EVERY_STEP) == 0
    log = (interrupted_run / "log.txt").read_text()
    assert "checkpoint-5 was saved at step 2; rename it to checkpoint-2" in log
    assert "resuming from step 4" in log
    assert_same_result(interrupted_run, undisturbed_run)


def test_branch_off_a_corrupt_checkpoint_is_rejected(
    krill_train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krill_train("scheduler=constant", "steps=4") == 0
    checkpoint = krill_train.runs()[0] / "checkpoints" / "checkpoint-4"
    flip_bit(checkpoint / "model.safetensors")
    assert krill_train("scheduler=constant", "steps=6", f"branch={checkpoint}") == 2
    error = capsys.readouterr().err
    assert "checkpoint-4/model.safetensors was changed since it was saved" in error
    assert "use another checkpoint of that run" in error


def test_folder_of_a_running_process_is_left_untouched(
    capsys: pytest.CaptureFixture[str], krill_train: Any, interrupted_run: Path
) -> None:
    (interrupted_run / "checkpoints" / checkpoints.PARTIAL_FOLDER).mkdir()  # as while the other process saves
    before = sorted(interrupted_run.rglob("*"))
    with FileLock(interrupted_run / ".lock"):
        assert krill_train(*EVERY_STEP, f"resume={interrupted_run}") == 2
    assert "is being written by process" in capsys.readouterr().err
    assert sorted(interrupted_run.rglob("*")) == before


# --- a full disk -------------------------------------------------------------------------------------------


def save_no_weights(self: Any, output_dir: str, **_: Any) -> None:
    Path(output_dir).mkdir()


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt"])
def test_full_disk_loses_no_checkpoint_and_the_same_command_resumes(
    file: str, krill_train: Any, undisturbed_run: Path, interrupted_run: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    size = (interrupted_run / "checkpoints" / "checkpoint-4" / file).stat().st_size
    with limit_file_size(size // 2), pytest.MonkeyPatch.context() as patch:
        if file == "optimizer.pt":  # the weights, which are written first, must fit
            patch.setattr("transformers.Trainer.save_model", save_no_weights)
        assert krill_train(*EVERY_STEP) == 1
    errors = capsys.readouterr().err
    assert "not enough space for another checkpoint" in errors
    assert "the traceback above" not in errors
    assert list_checkpoint_steps(interrupted_run) == [2, 3, 4]
    assert not (interrupted_run / "checkpoints" / checkpoints.PARTIAL_FOLDER).exists()
    assert (read_status(interrupted_run) or {})["state"] == "failed"

    assert krill_train(*EVERY_STEP) == 0
    assert_same_result(interrupted_run, undisturbed_run, has_same_trainer_state=False)
