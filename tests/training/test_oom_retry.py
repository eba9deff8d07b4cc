"""Out of memory: the micro batch shrinks, the run resumes, and the result is the same."""

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
from krill.resources import is_out_of_memory
from krill.runs import checkpoints
from krill.runs.json_lines import read_metrics
from krill.runs.record import read_status
from krill.training.batch_shape import (
    BatchShape,
    compute_batch_shape,
    shrink_micro_batch,
    with_micro_batch_size,
)
from krill.training.compute.head_loss import HeadLoss
from krill.training.oom_retry import retry_on_oom
from krill.training.trainer import KrillTrainer

Train = Callable[..., Path]
Configure = Callable[..., TrainConfig]
Losses = Callable[[Path], list[float]]
FOUR = ("batch.micro_batch_size=4", "eval_every=3", "steps=5")
"""Four rows per step, in one forward pass."""


def exhaust_cpu_allocator() -> None:
    torch.empty(1 << 50)  # more than any machine has, so torch raises its own error


def raise_cuda_oom() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def raise_memory_error() -> None:
    raise MemoryError


@pytest.fixture
def limit_rows(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[int, int]]]:
    """limit_rows(2): more than 2 rows at a time fail. Returns the growing list of attempted (step, rows)."""
    original = KrillTrainer.training_step

    def limit(
        max_rows: int, since: int = 0, fail: Callable[[], None] = raise_cuda_oom
    ) -> list[tuple[int, int]]:
        attempts: list[tuple[int, int]] = []

        def training_step(trainer: KrillTrainer, model: Any, inputs: dict[str, Any], *rest: Any) -> Any:
            step, rows = trainer.state.global_step, len(inputs["input_ids"])
            attempts.append((step, rows))
            if rows > max_rows and step >= since:
                fail()
            return original(trainer, model, inputs, *rest)

        monkeypatch.setattr(KrillTrainer, "training_step", training_step)
        return attempts

    return limit


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


@pytest.mark.parametrize("fail", [raise_cuda_oom, exhaust_cpu_allocator])
def test_oom_before_the_first_checkpoint_equals_a_run_with_the_smaller_micro_batch(
    train_in: Train,
    make_config: Configure,
    read_losses: Losses,
    limit_rows: Any,
    fail: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    overrides = ("batch.micro_batch_size=1", "batch.gradient_accumulation_steps=4")
    small = train_in(make_config(*FOUR, *overrides), "small")
    attempts = limit_rows(1, fail=fail)
    folder = train_in(make_config(*FOUR), "folder")
    assert [rows for _, rows in attempts] == [4, 2, *[1] * 20]
    assert read_losses(folder) == read_losses(small)
    assert all(
        torch.equal(tensor, load_weights(small)[name]) for name, tensor in load_weights(folder).items()
    )
    messages = [line.getMessage() for line in caplog.records if line.getMessage().startswith("out of memory")]
    assert len(messages) == 2
    assert "with 4 rows at a time: resuming with 2, 2 forward passes per step" in messages[0]
    assert "with 2 rows at a time: resuming with 1, 4 forward passes per step" in messages[1]
    assert "the effective batch remains 4 rows" in messages[1]


def test_oom_in_the_middle_resumes_from_the_newest_checkpoint(
    krill_train: Any, read_losses: Losses, limit_rows: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = (*FOUR, "save_every=2")
    assert krill_train(*overrides) == 0
    (undisturbed,) = krill_train.runs()
    attempts = limit_rows(2, since=3)
    assert krill_train(*overrides) == 0
    (folder,) = set(krill_train.runs()) - {undisturbed}
    assert attempts == [(0, 4), (1, 4), (2, 4), (3, 4), (2, 2), (2, 2), (3, 2), (3, 2), (4, 2), (4, 2)]
    assert "resuming from step 2" in capsys.readouterr().err
    assert [line["step"] for line in read_metrics(folder) if "loss" in line] == [1, 2, 3, 4, 5]
    assert read_losses(folder) == pytest.approx(read_losses(undisturbed), abs=1e-5)
    status = read_status(folder) or {}
    assert (status["state"], status["micro_batch_size"], status["starts"]) == ("finished", 2, 1)
    assert "out of memory with 4 rows" in (folder / "log.txt").read_text()


def test_oom_in_a_validation_shrinks_the_micro_batch_too(
    krill_train: Any, read_losses: Losses, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert krill_train(*FOUR) == 0
    (undisturbed,) = krill_train.runs()
    original = HeadLoss.token_losses

    def token_losses(
        loss: HeadLoss, model: Any, inputs: dict[str, Any], labels: torch.Tensor
    ) -> torch.Tensor:
        if len(labels) > 2:
            raise_cuda_oom()
        return original(loss, model, inputs, labels)

    monkeypatch.setattr(HeadLoss, "token_losses", token_losses)
    assert krill_train(*FOUR) == 0
    (folder,) = set(krill_train.runs()) - {undisturbed}
    assert (read_status(folder) or {})["micro_batch_size"] == 2
    assert read_losses(folder) == pytest.approx(read_losses(undisturbed), abs=1e-5)


def test_resumed_command_starts_with_the_size_that_fits(
    krill_train: Any, limit_rows: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A signal just before the out-of-memory error is not lost with the failed attempt."""

    def fail_after_signal() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise_cuda_oom()

    attempts = limit_rows(2, fail=fail_after_signal)
    assert krill_train(*FOUR) == 75
    assert attempts == [(0, 4), (0, 2), (0, 2)]
    (folder,) = krill_train.runs()
    assert [
        checkpoints.parse_step(path) for path in checkpoints.list_checkpoints(folder / "checkpoints")
    ] == [1]
    capsys.readouterr()
    attempts = limit_rows(2)
    assert krill_train(*FOUR) == 0
    assert krill_train.states() == ["finished"]
    assert {rows for _, rows in attempts} == {2}
    assert "2 rows at a time; 4 did not fit before" in capsys.readouterr().err


def test_failed_attempt_is_freed_before_the_next_one(
    train_in: Train, make_config: Configure, limit_rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: list[weakref.ref[Any]] = []

    def build_after_release(*arguments: Any) -> Any:
        assert all(model() is None for model in models)
        models.append(weakref.ref(model := build_model(*arguments)))
        return model

    monkeypatch.setattr("krill.training.run.build_model", build_after_release)
    limit_rows(1)
    train_in(make_config(*FOUR, "steps=1"))
    assert len(models) == 3


def test_one_row_that_does_not_fit_fails_with_remedies(
    krill_train: Any, limit_rows: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    attempts = limit_rows(0)
    assert krill_train(*FOUR, "hardware.loss=full") == 1
    assert [rows for _, rows in attempts] == [4, 2, 1]
    error = capsys.readouterr().err.splitlines()[-1]
    assert "out of memory with one row of 64 tokens at a time" in error
    for remedy in (
        "hardware.gradient_checkpointing=true",
        "hardware.loss=chunked",
        "sequence_len=32",
        "model=",
    ):
        assert remedy in error
    assert krill_train(*FOUR, "hardware.gradient_checkpointing=true") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "hardware" not in error


def test_oom_on_several_ranks_is_raised(
    make_config: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attempt(config: TrainConfig) -> int:
        if config.batch.micro_batch_size > 1:
            raise_cuda_oom()
        return 7

    assert retry_on_oom(attempt, make_config(*FOUR), tmp_path) == 7
    monkeypatch.setattr("krill.training.ranks.get_world_size", lambda: 2)
    with pytest.raises(KrillError) as oom:
        retry_on_oom(attempt, make_config(*FOUR), tmp_path)
    overrides = "batch.micro_batch_size=2 batch.gradient_accumulation_steps=2"
    assert f"4 rows at a time on each rank; use {overrides} for the same batch" in str(oom.value)
    assert "or hardware.sharding=fsdp2 resume=false, hardware.gradient_checkpointing=true" in str(oom.value)

    def fail(config: TrainConfig) -> int:
        raise_cuda_oom()
        return 7

    with pytest.raises(KrillError, match="one row of 64 tokens at a time on each rank; use hardware"):
        retry_on_oom(fail, make_config("batch.micro_batch_size=1"), tmp_path)


def test_only_memory_errors_are_out_of_memory() -> None:
    for fail in (raise_cuda_oom, exhaust_cpu_allocator, raise_memory_error):
        with pytest.raises((RuntimeError, MemoryError)) as oom:
            fail()
        assert is_out_of_memory(oom.value)
    for message in ("CUDA error: out of memory\nCUDA kernel errors", "Triton Error [CUDA]: out of memory"):
        assert is_out_of_memory(RuntimeError(message))
    for error in (RuntimeError("no such luck"), KrillError("diverged"), ValueError("can't allocate memory")):
        assert not is_out_of_memory(error)


@pytest.mark.parametrize(
    ("size", "batch_shape", "expected"),
    [
        (8, BatchShape(8, 1), 4),
        (12, BatchShape(12, 1), 6),
        (9, BatchShape(9, 1), 3),
        (7, BatchShape(7, 2), 2),
        (7, BatchShape(7, 1), 1),
    ],
)
def test_smaller_size_divides_the_rows_of_a_step(size: int, batch_shape: BatchShape, expected: int) -> None:
    assert shrink_micro_batch(size, batch_shape) == expected


@pytest.mark.parametrize("extra_overrides", [("batch.tokens=768",), ("batch.gradient_accumulation_steps=6",)])
def test_smaller_micro_batch_keeps_the_rows_of_a_step(
    make_config: Configure, extra_overrides: tuple[str, ...]
) -> None:
    config = make_config(*extra_overrides)
    requested = compute_batch_shape(config)
    smaller = compute_batch_shape(with_micro_batch_size(config, 1))
    assert smaller.micro_batch_size == 1 < requested.micro_batch_size
    assert smaller.rows_per_step == requested.rows_per_step == 12
