"""A checkpoint saved in the background has the same bytes as one saved synchronously, and is no easier to lose."""

from __future__ import annotations

import logging
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import limit_file_size, train_and_kill, train_and_signal
from trainings import TWO_RANKS, assert_same_result, list_checkpoint_steps

from krill.launch.preload import RUNNING_SERVER_VARIABLE
from krill.runs import checkpoints
from krill.runs.json_lines import read_metrics
from krill.runs.record import read_status
from krill.training.callbacks.progress import ProgressReporter
from krill.training.checkpoint import async_save
from krill.training.checkpoint.async_save import AsyncCheckpointSaver, copy_to_host
from krill.training.checkpoint.hub_upload import HubUploader
from krill.training.checkpoint.retention import CheckpointRetention
from krill.training.trainer import KrillTrainer

BACKGROUND = "save_in_background=true"


class Gate:
    """Blocks the writing thread until the gate is open."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.open, original = threading.Event(), async_save._run_writes

        def run_writes(*arguments: Any) -> None:
            assert self.open.wait(60), "the gate was never opened"
            original(*arguments)

        patch.setattr(async_save, "_run_writes", run_writes)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.open.set()


def call_at_step_end(patch: pytest.MonkeyPatch, callback: Callable[[int], object]) -> None:
    """Calls `callback` at the end of each step, before the save of the step."""
    original = ProgressReporter.on_step_end

    def on_step_end(self: ProgressReporter, args: Any, state: Any, control: Any, **rest: Any) -> None:
        callback(state.global_step)
        original(self, args, state, control, **rest)

    patch.setattr(ProgressReporter, "on_step_end", on_step_end)


# --- the same bytes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "extra_overrides",
    [
        ("optimizer=adamw", "model.tie_word_embeddings=true"),
        ("optimizer=muon_moonlight", "model.tie_word_embeddings=false", "optimizer.normuon=true"),
    ],
)
def test_every_file_has_the_bytes_of_a_synchronous_save(
    extra_overrides: tuple[str, ...], krill_train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = KrillTrainer._save_checkpoint
    folders = {False: tmp_path / "synchronous", True: tmp_path / "background"}

    def save_twice(self: KrillTrainer, model: Any, trial: Any) -> None:
        for in_background, folder in folders.items():
            self.config = self.config.model_copy(update={"save_in_background": in_background})
            original(self, model, trial)
            self.async_saver.finalize()
            name = f"checkpoint-{self.state.global_step}"
            shutil.copytree(Path(self.args.output_dir) / name, folder / name)

    monkeypatch.setattr(KrillTrainer, "_save_checkpoint", save_twice)
    assert krill_train(*extra_overrides) == 0
    expected, actual = (
        {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
        for folder in folders.values()
    )
    names = {path.name for path in expected}
    assert {"model.safetensors", "optimizer.pt", "training_args.bin", "manifest.json"} < names
    assert actual.keys() == expected.keys()
    for name, path in expected.items():
        assert actual[name].read_bytes() == path.read_bytes(), name


def test_copy_shares_storage_like_the_original(tmp_path: Path) -> None:
    tensor = torch.arange(24.0)
    groups = {"betas": (0.9, 0.95)}
    state = {
        "tied": [tensor, tensor],
        "views": (tensor.view(4, 6).t(), tensor[3:7]),
        "empty": torch.empty(0),
        "bf16": torch.ones(3, dtype=torch.bfloat16),
        "groups": [groups, groups],
    }
    file = tmp_path / "state.pt"
    torch.save(state, file)
    expected, copied = file.read_bytes(), copy_to_host(state)
    tensor.fill_(-1)  # the next step
    torch.save(copied, file)
    assert file.read_bytes() == expected


# --- while the thread writes -------------------------------------------------------------------------------


def test_training_continues_and_the_next_save_waits(
    krill_train: Any, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps_at: dict[int, list[int]] = {}

    def record_checkpoints(step: int) -> None:
        (run,) = krill_train.runs()
        steps_at[step] = list_checkpoint_steps(run)
        if step == 6:  # its save waits for the save of step 3
            gate.open.set()

    overrides = ("steps=7", "save_every=3")
    with monkeypatch.context() as patch:
        call_at_step_end(patch, record_checkpoints)
        assert krill_train(*overrides, BACKGROUND) == 0
    assert steps_at[4] == steps_at[5] == steps_at[6] == []
    assert steps_at[7][0] == 3
    (run,) = krill_train.runs()
    assert list_checkpoint_steps(run) == [3, 6, 7]
    assert not any(checkpoints.verify(path) for path in checkpoints.list_checkpoints(run / "checkpoints"))
    assert not (run / "checkpoints" / checkpoints.PARTIAL_FOLDER).exists()
    assert krill_train(*overrides, "output=synchronous") == 0
    for file in ("model.safetensors", "optimizer.pt"):
        expected = krill_train.outputs / "synchronous" / "checkpoints" / "checkpoint-3" / file
        assert (run / "checkpoints" / "checkpoint-3" / file).read_bytes() == expected.read_bytes()


def test_save_hooks_run_in_order_in_the_main_thread_once_the_checkpoint_is_complete(
    krill_train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, int]] = []

    def record_calls(hook_class: Any) -> None:
        original = hook_class.on_checkpoint_saved

        def on_checkpoint_saved(self: Any, step: int) -> None:
            assert threading.current_thread() is threading.main_thread()
            (run,) = krill_train.runs()
            assert not checkpoints.verify(run / "checkpoints" / f"checkpoint-{step}")
            calls.append((hook_class.__name__, step))
            original(self, step)

        monkeypatch.setattr(hook_class, "on_checkpoint_saved", on_checkpoint_saved)

    savers: list[AsyncCheckpointSaver] = []
    original_start = AsyncCheckpointSaver.start

    def start(self: AsyncCheckpointSaver, *arguments: Any) -> None:
        original_start(self, *arguments)
        savers.append(self)

    hooks = ("HubUploader", "CheckpointRetention")

    def check_calls(step: int) -> None:
        if step == 3:
            savers[0].write_future.result()
        if step == 4:
            assert calls == [(name, 2) for name in hooks], "called by the next save, not by the next step"

    record_calls(HubUploader)
    record_calls(CheckpointRetention)
    monkeypatch.setattr(AsyncCheckpointSaver, "start", start)
    call_at_step_end(monkeypatch, check_calls)
    assert krill_train("steps=5", "save_every=2", BACKGROUND) == 0
    assert calls == [(name, step) for step in (2, 4, 5) for name in hooks]


def test_retention_and_best_equal_those_of_synchronous_saves(krill_train: Any) -> None:
    overrides = ("steps=9", "save_every=1", "eval_every=2", "keep_checkpoints=2", "lr=0.5", "scheduler=wsd")
    for name, more in (("synchronous", ()), ("background", (BACKGROUND,))):
        assert krill_train(*overrides, *more, f"output={name}") == 0
    synchronous, background = (krill_train.outputs / name for name in ("synchronous", "background"))
    assert list_checkpoint_steps(background) == list_checkpoint_steps(synchronous)
    assert len(list_checkpoint_steps(synchronous)) > 2, "the run must keep more than the newest checkpoints"
    assert (read_status(background) or {})["best"] == (read_status(synchronous) or {})["best"]
    assert_same_result(background, synchronous)


# --- interruptions and errors ------------------------------------------------------------------------------


@pytest.mark.slow
def test_run_killed_while_writing_resumes_from_the_previous_checkpoint(krill_train: Any) -> None:
    overrides = ("steps=8", "save_every=2", "eval_every=4")
    assert krill_train(*overrides) == 0
    (undisturbed,) = krill_train.runs()
    train_and_kill(krill_train, 5, "saving", *overrides, BACKGROUND)
    (run,) = set(krill_train.runs()) - {undisturbed}
    assert (run / "checkpoints" / checkpoints.PARTIAL_FOLDER).exists()
    assert list_checkpoint_steps(run)[-1] in (2, 4)
    assert krill_train(*overrides, BACKGROUND) == 0
    assert_same_result(run, undisturbed)
    assert not (run / "checkpoints" / checkpoints.PARTIAL_FOLDER).exists()


def test_signal_ends_the_run_once_its_checkpoint_is_written(
    krill_train: Any, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = AsyncCheckpointSaver._is_written

    def is_written(self: AsyncCheckpointSaver, blocking: bool) -> bool:
        if blocking:
            gate.open.set()
        return original(self, blocking)

    monkeypatch.setattr(AsyncCheckpointSaver, "_is_written", is_written)
    overrides = ("steps=7", "save_every=50", BACKGROUND)
    assert train_and_signal(krill_train, signal.SIGTERM, 3, *overrides) == 75
    (run,) = krill_train.runs()
    assert list_checkpoint_steps(run) == [3]
    assert krill_train(*overrides) == 0
    assert krill_train(*overrides[:-1]) == 0
    assert_same_result(run, krill_train.runs()[-1])


class OpensGateOnMessage(logging.Filter):
    """Opens the gate when krill logs that it waits for the checkpoint."""

    def __init__(self, gate: Gate):
        super().__init__()
        self.gate = gate

    def filter(self, record: logging.LogRecord) -> bool:
        if "waiting for the checkpoint of step 2 to be written" in record.getMessage():
            self.gate.open.set()
        return True


@pytest.mark.parametrize(("error", "code"), [(RuntimeError, 1), (KeyboardInterrupt, 130)])
def test_error_in_training_does_not_leave_a_partial_checkpoint(
    error: type[BaseException], code: int, krill_train: Any, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(step: int) -> None:
        if step == 3:
            raise error

    call_at_step_end(monkeypatch, fail)
    monkeypatch.setattr(async_save.log, "filters", [*async_save.log.filters, OpensGateOnMessage(gate)])
    try:
        assert krill_train("save_every=2", BACKGROUND) == code
    except RuntimeError:
        assert error is RuntimeError
    (run,) = krill_train.runs()
    assert list_checkpoint_steps(run) == [2]


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt"])
def test_full_disk_ends_the_run_early_and_loses_no_checkpoint(
    file: str, krill_train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = (
        "steps=30",
        "save_every=2",
        "optimizer=adamw",
    )  # AdamW's state is twice as large as the weights
    assert train_and_signal(krill_train, signal.SIGTERM, 3, *overrides) == 75
    (run,) = krill_train.runs()
    max_size = (run / "checkpoints" / "checkpoint-3" / file).stat().st_size - 1
    capsys.readouterr()
    with limit_file_size(max_size):
        assert krill_train(*overrides, BACKGROUND) == 1
    errors = capsys.readouterr().err
    assert errors.count("not enough space for another checkpoint") == 1
    assert "the traceback above" not in errors
    assert list_checkpoint_steps(run) == [2, 3]
    assert not (run / "checkpoints" / checkpoints.PARTIAL_FOLDER).exists()
    assert (read_status(run) or {})["state"] == "failed"
    assert read_metrics(run)[-1]["step"] <= 6, (
        "the save of step 4 failed, and the save of step 6 waits for it"
    )


# --- several ranks -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_rank0_writes_for_both_ranks(
    krill_train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = (*TWO_RANKS, "steps=6", "save_every=2")
    assert krill_train(*overrides, "output=synchronous") == 0
    assert krill_train(*overrides, BACKGROUND, "output=background") == 0
    assert_same_result(tmp_path / "background", tmp_path / "synchronous")
    assert list_checkpoint_steps(tmp_path / "background") == [2, 4, 6]
    for checkpoint in checkpoints.list_checkpoints(tmp_path / "background" / "checkpoints"):
        assert checkpoints.verify(checkpoint) == []
        assert (checkpoint / "rng_state_1.pth").exists()
    size = (tmp_path / "synchronous" / "checkpoints/checkpoint-6/model.safetensors").stat().st_size
    monkeypatch.delenv(RUNNING_SERVER_VARIABLE, raising=False)  # ranks that inherit the limit
    with limit_file_size(size // 2):
        assert krill_train(*overrides, BACKGROUND, "output=full") == 1
    assert "not enough space" in (read_status(tmp_path / "full") or {})["error"]


# --- limits ----------------------------------------------------------------------------------------


def test_sharded_checkpoints_are_rejected(krill_train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert krill_train(BACKGROUND, "hardware.sharding=fsdp2") == 2
    assert "set save_in_background=false or hardware.sharding=none" in capsys.readouterr().err
    assert krill_train.runs() == []
