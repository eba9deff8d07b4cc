"""A checkpoint that is written while the training goes on has the bytes of one that is not, and is lost no sooner."""

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

from krill.runs import checkpoints
from krill.runs.record import read_metrics, read_status
from krill.training.callbacks.progress import ProgressReporter
from krill.training.checkpoint import async_save
from krill.training.checkpoint.async_save import AsyncCheckpointSaver, copy_to_host
from krill.training.checkpoint.hub_upload import HubUploader
from krill.training.checkpoint.retention import CheckpointRetention
from krill.training.estimate import memory
from krill.training.metrics import trackers
from krill.training.trainer import KrillTrainer

BACKGROUND = "save_in_background=true"


class Gate:
    """The thread writes nothing until the gate is open."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.open, plain = threading.Event(), async_save._run_writes

        def write(*arguments: Any) -> None:
            assert self.open.wait(60), "nothing has opened the gate"
            plain(*arguments)

        patch.setattr(async_save, "_run_writes", write)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate(monkeypatch)
    yield made
    made.open.set()


def at_step(patch: pytest.MonkeyPatch, look: Callable[[int], object]) -> None:
    """Call `look` at the end of each step, before what the step saves."""
    plain = ProgressReporter.on_step_end

    def on_step_end(self: ProgressReporter, args: Any, state: Any, control: Any, **rest: Any) -> None:
        look(state.global_step)
        plain(self, args, state, control, **rest)

    patch.setattr(ProgressReporter, "on_step_end", on_step_end)


# --- the same bytes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("optimizer=adamw", "model.tie_word_embeddings=true"),
        ("optimizer=muon_moonlight", "model.tie_word_embeddings=false", "optimizer.normuon=true"),
    ],
)
def test_every_file_of_it_has_the_bytes_of_one_that_is_saved_at_once(
    words: tuple[str, ...], krill_train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = KrillTrainer._save_checkpoint

    def both(self: KrillTrainer, model: Any, trial: Any) -> None:
        for wanted in (False, True):
            self.config = self.config.model_copy(update={"save_in_background": wanted})
            plain(self, model, trial)
            self.async_saver.finalize()
            place = f"checkpoint-{self.state.global_step}"
            shutil.copytree(Path(self.args.output_dir) / place, tmp_path / str(wanted) / place)

    monkeypatch.setattr(KrillTrainer, "_save_checkpoint", both)
    assert krill_train(*words) == 0
    files = [path for path in (tmp_path / "False").rglob("*") if path.is_file()]
    assert {"model.safetensors", "optimizer.pt", "training_args.bin", "manifest.json"} < {
        f.name for f in files
    }
    for file in files:
        assert file.read_bytes() == (tmp_path / "True" / file.relative_to(tmp_path / "False")).read_bytes(), (
            file
        )
    assert len(files) == len([path for path in (tmp_path / "True").rglob("*") if path.is_file()])


def test_what_shares_a_storage_shares_one_in_the_copy(tmp_path: Path) -> None:
    whole = torch.arange(24.0)
    groups = {"betas": (0.9, 0.95)}
    state = {
        "tied": [whole, whole],
        "views": (whole.view(4, 6).t(), whole[3:7]),
        "empty": torch.empty(0),
        "bf16": torch.ones(3, dtype=torch.bfloat16),
        "groups": [groups, groups],
    }
    file = tmp_path / "state.pt"
    torch.save(state, file)
    saved, copied = file.read_bytes(), copy_to_host(state)
    whole.fill_(-1)  # the next step
    torch.save(copied, file)
    assert file.read_bytes() == saved


# --- while it is written -----------------------------------------------------------------------------------


def test_the_training_goes_on_and_the_next_save_waits(
    krill_train: Any, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[int, list[int]] = {}

    def look(step: int) -> None:
        (run,) = krill_train.runs()
        seen[step] = list_checkpoint_steps(run)
        if step == 6:  # its save waits for that of step 3
            gate.open.set()

    words = ("steps=7", "save_every=3")
    with monkeypatch.context() as patch:
        at_step(patch, look)
        assert krill_train(*words, BACKGROUND) == 0
    assert seen[4] == seen[5] == seen[6] == []
    assert seen[7][0] == 3
    (run,) = krill_train.runs()
    assert list_checkpoint_steps(run) == [3, 6, 7]
    assert [checkpoints.verify(path) for path in checkpoints.list_checkpoints(run / "checkpoints")] == [
        [],
        [],
        [],
    ]
    assert not (run / "checkpoints" / checkpoints.PARTIAL_FOLDER).exists()
    assert krill_train(*words, "output=once") == 0
    for file in ("model.safetensors", "optimizer.pt"):
        once = krill_train.outputs / "once" / "checkpoints" / "checkpoint-3" / file
        assert (run / "checkpoints" / "checkpoint-3" / file).read_bytes() == once.read_bytes()


def test_what_waits_for_a_checkpoint_is_called_when_it_is_there_in_order_by_the_main_thread(
    krill_train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int]] = []

    def watched(kind: Any) -> None:
        plain = kind.saved

        def saved(self: Any, step: int) -> None:
            assert threading.current_thread() is threading.main_thread()
            (run,) = krill_train.runs()
            assert not checkpoints.verify(run / "checkpoints" / f"checkpoint-{step}")
            told.append((kind.__name__, step))
            plain(self, step)

        monkeypatch.setattr(kind, "saved", saved)

    started: list[AsyncCheckpointSaver] = []
    plain_start = AsyncCheckpointSaver.start

    def start(self: AsyncCheckpointSaver, *arguments: Any) -> None:
        plain_start(self, *arguments)
        started.append(self)

    def look(step: int) -> None:
        if step == 3:
            started[0].write_future.result()
        if step == 4:
            assert told == [("Uploads", 2), ("Keeping", 2)], "not by the next step, but by the next save"

    watched(HubUploader)
    watched(CheckpointRetention)
    monkeypatch.setattr(AsyncCheckpointSaver, "start", start)
    at_step(monkeypatch, look)
    assert krill_train("steps=5", "save_every=2", BACKGROUND) == 0
    assert told == [(name, step) for step in (2, 4, 5) for name in ("Uploads", "Keeping")]


def test_what_is_kept_and_the_best_are_those_of_a_run_that_saves_at_once(krill_train: Any) -> None:
    words = ("steps=9", "save_every=1", "eval_every=2", "keep_checkpoints=2", "lr=0.5", "scheduler=wsd")
    for name, more in (("once", ()), ("later", (BACKGROUND,))):
        assert krill_train(*words, *more, f"output={name}") == 0
    once, later = (krill_train.outputs / name for name in ("once", "later"))
    assert list_checkpoint_steps(later) == list_checkpoint_steps(once)
    assert len(list_checkpoint_steps(once)) > 2, "only the newest are kept: nothing else was to be"
    assert (read_status(later) or {})["best"] == (read_status(once) or {})["best"]
    assert_same_result(later, once)


# --- what ends the run -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_while_it_is_written_the_run_goes_on_from_the_one_before(krill_train: Any) -> None:
    words = ("steps=8", "save_every=2", "eval_every=4")
    assert krill_train(*words) == 0
    (whole,) = krill_train.runs()
    train_and_kill(krill_train, 5, "saving", *words, BACKGROUND)
    (run,) = set(krill_train.runs()) - {whole}
    assert (run / "checkpoints" / checkpoints.PARTIAL_FOLDER).exists()
    assert list_checkpoint_steps(run)[-1] in (2, 4)
    assert krill_train(*words, BACKGROUND) == 0
    assert_same_result(run, whole)
    assert not (run / "checkpoints" / checkpoints.PARTIAL_FOLDER).exists()


def test_a_signal_is_obeyed_when_the_last_one_is_written(
    krill_train: Any, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = AsyncCheckpointSaver._is_written

    def is_written(self: AsyncCheckpointSaver, wait: bool) -> bool:
        if wait:
            gate.open.set()
        return plain(self, wait)

    monkeypatch.setattr(AsyncCheckpointSaver, "_is_written", is_written)
    words = ("steps=7", "save_every=50", BACKGROUND)
    assert train_and_signal(krill_train, signal.SIGTERM, 3, *words) == 75
    (run,) = krill_train.runs()
    assert list_checkpoint_steps(run) == [3]
    assert krill_train(*words) == 0
    assert krill_train(*words[:-1]) == 0
    assert_same_result(run, krill_train.runs()[-1])


class OpensWhenTold(logging.Filter):
    """Opens the gate when krill says that it waits."""

    def __init__(self, gate: Gate):
        super().__init__()
        self.gate = gate

    def filter(self, record: logging.LogRecord) -> bool:
        if "waiting until that of step 2 is written" in record.getMessage():
            self.gate.open.set()
        return True


@pytest.mark.parametrize(("error", "code"), [(RuntimeError, 1), (KeyboardInterrupt, 130)])
def test_an_error_of_the_training_does_not_leave_it_half_written(
    error: type[BaseException], code: int, krill_train: Any, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(step: int) -> None:
        if step == 3:
            raise error

    at_step(monkeypatch, fail)
    listening = OpensWhenTold(gate)
    monkeypatch.setattr(async_save.log, "filters", [*async_save.log.filters, listening])
    try:
        assert krill_train("save_every=2", BACKGROUND) == code
    except RuntimeError:
        assert error is RuntimeError
    (run,) = krill_train.runs()
    assert list_checkpoint_steps(run) == [2]


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt"])
def test_a_full_disk_ends_the_run_soon_and_loses_nothing(
    file: str, krill_train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("steps=30", "save_every=2", "optimizer=adamw")  # its state is twice as large as the weights
    assert train_and_signal(krill_train, signal.SIGTERM, 3, *words) == 75
    (run,) = krill_train.runs()
    room = (run / "checkpoints" / "checkpoint-3" / file).stat().st_size - 1
    capsys.readouterr()
    with limit_file_size(room):
        assert krill_train(*words, BACKGROUND) == 1
    told = capsys.readouterr().err
    assert told.count("no room for another checkpoint") == 1
    assert "the traceback above" not in told
    assert list_checkpoint_steps(run) == [2, 3]
    assert not (run / "checkpoints" / checkpoints.PARTIAL_FOLDER).exists()
    assert (read_status(run) or {})["state"] == "failed"
    assert read_metrics(run)[-1]["step"] <= 6, "the save of step 4 failed, that of step 6 had to wait for it"


# --- several ranks -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_first_of_two_ranks_writes_for_both(krill_train: Any, tmp_path: Path) -> None:
    words = (*TWO_RANKS, "steps=6", "save_every=2")
    assert krill_train(*words, "output=once") == 0
    assert krill_train(*words, BACKGROUND, "output=later") == 0
    assert_same_result(tmp_path / "later", tmp_path / "once")
    assert list_checkpoint_steps(tmp_path / "later") == [2, 4, 6]
    for checkpoint in checkpoints.list_checkpoints(tmp_path / "later" / "checkpoints"):
        assert checkpoints.verify(checkpoint) == []
        assert (checkpoint / "rng_state_1.pth").exists()
    size = (tmp_path / "once" / "checkpoints/checkpoint-6/model.safetensors").stat().st_size
    with limit_file_size(size // 2):
        assert krill_train(*words, BACKGROUND, "output=full") == 1
    assert "no room" in (read_status(tmp_path / "full") or {})["error"]


# --- what it cannot do, and what it costs ------------------------------------------------------------------


def test_sharded_checkpoints_are_refused(krill_train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert krill_train(BACKGROUND, "hardware.sharding=fsdp2") == 2
    assert "write save_in_background=false or hardware.sharding=none" in capsys.readouterr().err
    assert krill_train.runs() == []


def test_a_tracker_that_takes_checkpoints_at_once_is_refused(
    make_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: name)
    monkeypatch.setenv("WANDB_LOG_MODEL", "checkpoint")
    trackers.check_trackers(make_config("trackers=[wandb]"))
    with pytest.raises(trackers.UsageError, match="WANDB_LOG_MODEL=end"):
        trackers.check_trackers(make_config("trackers=[wandb]", BACKGROUND))


def test_the_copy_counts_in_the_memory_of_a_cpu(make_config: Any) -> None:
    once, later = (memory.estimate_step_memory(make_config(*words), 320, 2) for words in ((), (BACKGROUND,)))
    assert later.total - once.total == once.weights + once.optimizer
    assert (
        f"saving {memory.format_bytes(later.saving)}"
        in memory.format_memory_lines(make_config(BACKGROUND), 320)[0]
    )
    assert "saving" not in memory.format_memory_lines(make_config(), 320)[0]
