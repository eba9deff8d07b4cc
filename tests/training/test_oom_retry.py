"""Out of memory: the micro batch shrinks, the run goes on, and what is trained stays the same."""

from __future__ import annotations

import os
import signal
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from krill.config.schema import TrainConfig
from krill.errors import KrillError
from krill.models.build import build_model
from krill.runs import checkpoints
from krill.runs.record import read_metrics, read_status
from krill.training.batch_shape import BatchShape, compute_batch_shape
from krill.training.compute.head_loss import HeadLoss
from krill.training.oom_retry import is_out_of_memory, retry_on_oom, shrink_micro_batch, with_micro_batch_size
from krill.training.trainer import KrillTrainer

Train = Callable[..., Path]
Configure = Callable[..., TrainConfig]
Losses = Callable[[Path], list[float]]
FOUR = ("batch.micro_batch_size=4", "eval_every=3", "steps=5")
"""Four rows a step, in one pass."""


def allocator() -> None:
    torch.empty(1 << 50)  # more than any machine has: torch's own error on the CPU


def cuda() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def python() -> None:
    raise MemoryError


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[int, int]]]:
    """full(2): no room for more than 2 rows at a time. Returns the growing list of (optimizer step, rows) tried."""
    plain = KrillTrainer.training_step

    def work(most: int, since: int = 0, fail: Callable[[], None] = cuda) -> list[tuple[int, int]]:
        tried: list[tuple[int, int]] = []

        def training_step(trainer: KrillTrainer, model: Any, inputs: dict[str, Any], *rest: Any) -> Any:
            step, rows = trainer.state.global_step, len(inputs["input_ids"])
            tried.append((step, rows))
            if rows > most and step >= since:
                fail()
            return plain(trainer, model, inputs, *rest)

        monkeypatch.setattr(KrillTrainer, "training_step", training_step)
        return tried

    return work


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


@pytest.mark.parametrize("fail", [cuda, allocator])
def test_before_the_first_checkpoint_it_is_the_run_with_the_small_micro_batch(
    train_in: Train,
    make_config: Configure,
    read_losses: Losses,
    full: Any,
    fail: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    words = ("batch.micro_batch_size=1", "batch.gradient_accumulation_steps=4")
    small = train_in(make_config(*FOUR, *words), "small")
    tried = full(1, fail=fail)
    folder = train_in(make_config(*FOUR), "folder")
    assert [rows for _, rows in tried] == [4, 2, *[1] * 20]
    assert read_losses(folder) == read_losses(small)
    assert all(torch.equal(tensor, weights(small)[name]) for name, tensor in weights(folder).items())
    said = [line.getMessage() for line in caplog.records if line.getMessage().startswith("out of memory")]
    assert len(said) == 2
    assert "with 4 rows at a time: going on with 2, 2 forward passes a step" in said[0]
    assert "with 2 rows at a time: going on with 1, 4 forward passes a step" in said[1]
    assert "the effective batch stays 4 rows" in said[1]


def test_in_the_middle_it_goes_on_from_its_newest_checkpoint(
    krill_train: Any, read_losses: Losses, full: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*FOUR, "save_every=2")
    assert krill_train(*words) == 0
    (whole,) = krill_train.runs()
    tried = full(2, since=3)
    assert krill_train(*words) == 0
    (folder,) = set(krill_train.runs()) - {whole}
    assert tried == [(0, 4), (1, 4), (2, 4), (3, 4), (2, 2), (2, 2), (3, 2), (3, 2), (4, 2), (4, 2)]
    assert "going on from step 2" in capsys.readouterr().err
    assert [line["step"] for line in read_metrics(folder) if "loss" in line] == [1, 2, 3, 4, 5]
    assert read_losses(folder) == pytest.approx(read_losses(whole), abs=1e-5)
    status = read_status(folder) or {}
    assert (status["state"], status["micro_batch_size"], status["starts"]) == ("finished", 2, 1)
    assert "out of memory with 4 rows" in (folder / "log.txt").read_text()


def test_a_validation_that_does_not_fit_counts_too(
    krill_train: Any, read_losses: Losses, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert krill_train(*FOUR) == 0
    (whole,) = krill_train.runs()
    plain = HeadLoss.token_losses

    def nats(loss: HeadLoss, model: Any, inputs: dict[str, Any], labels: torch.Tensor) -> torch.Tensor:
        if len(labels) > 2:
            cuda()
        return plain(loss, model, inputs, labels)

    monkeypatch.setattr(HeadLoss, "token_losses", nats)
    assert krill_train(*FOUR) == 0
    (folder,) = set(krill_train.runs()) - {whole}
    assert (read_status(folder) or {})["micro_batch_size"] == 2
    assert read_losses(folder) == pytest.approx(read_losses(whole), abs=1e-5)


def test_the_same_command_after_a_stop_begins_with_what_fits(
    krill_train: Any, full: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The signal comes just before the shortage: it is not forgotten with the attempt."""

    def signalled() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        cuda()

    tried = full(2, fail=signalled)
    assert krill_train(*FOUR) == 75
    assert tried == [(0, 4), (0, 2), (0, 2)]
    (folder,) = krill_train.runs()
    assert [
        checkpoints.parse_step(path) for path in checkpoints.list_checkpoints(folder / "checkpoints")
    ] == [1]
    capsys.readouterr()
    tried = full(2)
    assert krill_train(*FOUR) == 0
    assert krill_train.states() == ["finished"]
    assert {rows for _, rows in tried} == {2}
    assert "2 rows at a time, since 4 did not fit before" in capsys.readouterr().err


def test_nothing_of_the_failed_attempt_stays_in_memory(
    train_in: Train, make_config: Configure, full: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: list[weakref.ref[Any]] = []

    def built(*arguments: Any) -> Any:
        assert all(model() is None for model in models)
        models.append(weakref.ref(model := build_model(*arguments)))
        return model

    monkeypatch.setattr("krill.training.run.build", built)
    full(1)
    train_in(make_config(*FOUR, "steps=1"))
    assert len(models) == 3


def test_one_row_that_does_not_fit_ends_the_run_with_the_remedies(
    krill_train: Any, full: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    tried = full(0)
    assert krill_train(*FOUR, "hardware.loss=full") == 1
    assert [rows for _, rows in tried] == [4, 2, 1]
    error = capsys.readouterr().err.splitlines()[-1]
    assert "out of memory with one row of 64 tokens at a time" in error
    for word in (
        "hardware.gradient_checkpointing=true",
        "hardware.loss=chunked",
        "sequence_len=32",
        "model=",
    ):
        assert word in error
    assert krill_train(*FOUR, "hardware.gradient_checkpointing=true") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "hardware" not in error


def test_on_several_ranks_the_error_passes(
    make_config: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attempt(config: TrainConfig) -> int:
        if config.batch.micro_batch_size > 1:
            cuda()
        return 7

    assert retry_on_oom(attempt, make_config(*FOUR), tmp_path) == 7
    monkeypatch.setattr("krill.training.ranks.get_world_size", lambda: 2)
    with pytest.raises(torch.OutOfMemoryError):
        retry_on_oom(attempt, make_config(*FOUR), tmp_path)


def test_other_errors_pass() -> None:
    for fail in (cuda, allocator, python):
        with pytest.raises((RuntimeError, MemoryError)) as shortage:
            fail()
        assert is_out_of_memory(shortage.value)
    for error in (RuntimeError("no such luck"), KrillError("diverged"), ValueError("can't allocate memory")):
        assert not is_out_of_memory(error)


@pytest.mark.parametrize(
    ("size", "asked", "expected"),
    [
        (8, BatchShape(8, 1), 4),
        (12, BatchShape(12, 1), 6),
        (9, BatchShape(9, 1), 3),
        (7, BatchShape(7, 2), 2),
        (7, BatchShape(7, 1), 1),
    ],
)
def test_the_next_smaller_size_divides_the_rows_of_a_step(
    size: int, asked: BatchShape, expected: int
) -> None:
    assert shrink_micro_batch(size, asked) == expected


@pytest.mark.parametrize("words", [("batch.tokens=768",), ("batch.gradient_accumulation_steps=6",)])
def test_rows_of_a_step_stay(make_config: Configure, words: tuple[str, ...]) -> None:
    config = make_config(*words)
    asked = compute_batch_shape(config.batch, 64)
    fitted = compute_batch_shape(with_micro_batch_size(config, 1).batch, 64)
    assert fitted.micro_batch_size == 1 < asked.micro_batch_size
    assert fitted.rows_per_step == asked.rows_per_step == 12
