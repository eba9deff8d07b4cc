"""What a run amounts to before it begins; a dry run says it and writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from trainings import plan_lines

from krill.config.schema import BatchConfig, TrainConfig
from krill.errors import UsageError
from krill.training.batch_shape import (
    BatchShape,
    TrainingLength,
    compute_batch_shape,
    compute_training_length,
)
from krill.training.compute.device import resolve_device, resolve_precision


def batch(micro: int = 8, accumulation: int | None = None, tokens: int | None = None) -> BatchConfig:
    return BatchConfig(micro_batch_size=micro, gradient_accumulation_steps=accumulation, tokens=tokens)


@pytest.mark.parametrize(
    ("asked", "ranks", "expected"),
    [
        (batch(8), 1, BatchShape(8, 1)),
        (batch(8, 3), 1, BatchShape(8, 3)),
        (batch(8, 3), 4, BatchShape(8, 3, 4)),
        (batch(8, tokens=64 * 32), 1, BatchShape(8, 4)),
        (batch(8, tokens=64 * 32), 2, BatchShape(8, 2, 2)),
        (batch(8, tokens=64 * 4), 1, BatchShape(4, 1)),  # fewer rows than micro_batch_size
        (batch(8, tokens=64 * 12), 1, BatchShape(6, 2)),  # the largest that divides
        (batch(4, tokens=64 * 7), 1, BatchShape(1, 7)),
    ],
)
def test_shape_of_a_batch(asked: BatchConfig, ranks: int, expected: BatchShape) -> None:
    found = compute_batch_shape(asked, 64, ranks)
    assert found == expected
    if asked.tokens:
        assert found.rows_per_step * 64 == asked.tokens


@pytest.mark.parametrize(
    ("tokens", "ranks", "offered"),
    [(100, 1, ("64", "128")), (10, 1, ("64",)), (64 * 3, 2, ("128", "256"))],
)
def test_tokens_that_make_no_whole_rows_are_refused_with_the_nearest_that_do(
    tokens: int, ranks: int, offered: tuple[str, ...]
) -> None:
    with pytest.raises(UsageError) as refused:
        compute_batch_shape(batch(tokens=tokens), 64, ranks)
    for value in offered:
        assert f"use batch.tokens={value}" in str(refused.value)
        compute_batch_shape(batch(tokens=int(value)), 64, ranks)


def test_length_by_steps_goes_on_for_ever(make_config: Callable[..., TrainConfig]) -> None:
    assert compute_training_length(make_config("steps=7"), rows=3, rows_per_step=4) == TrainingLength(7, None)


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        ("1", TrainingLength(3, 10)),
        ("2", TrainingLength(5, 20)),
        ("0.5", TrainingLength(2, 5)),
        ("0.01", TrainingLength(1, 1)),
    ],
)
def test_length_by_epochs_ends_with_the_last_row(
    make_config: Callable[..., TrainConfig], epochs: str, expected: TrainingLength
) -> None:
    assert compute_training_length(make_config(f"epochs={epochs}"), rows=10, rows_per_step=4) == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_devices_without_cuda() -> None:
    assert resolve_device("auto") == resolve_device("cpu") == "cpu"
    with pytest.raises(UsageError, match="device=auto or device=cpu"):
        resolve_device("cuda")


def test_precision() -> None:
    assert resolve_precision("auto", "cpu") == "fp32"
    assert resolve_precision("bf16", "cpu") == "bf16"
    assert resolve_precision("fp32", "cuda") == "fp32"


def figures(lines: list[str]) -> dict[str, str]:
    return dict(line.split(maxsplit=1) for line in lines)


def test_a_plan_before_anything_is_there_writes_nothing(
    make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    found = figures(plan_lines(make_config("epochs=2", "name=한국어"), tmp_path / "outputs"))
    assert found["name"] == "한국어"
    assert found["tokenizer"].startswith("train ")
    assert found["tokens"].startswith("prepare ")
    assert found["batch"] == "2 rows of 64 = 128 tokens per step"
    assert "is known once the tokens are prepared" in found["steps"]
    assert found["folder"] == str(tmp_path / "outputs" / "runs" / "한국어")
    assert list(tmp_path.iterdir()) == []


def test_a_plan_counts_the_entries_that_are_rounded_up(
    make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    words = ("tokenizer.vocab_size=1000", "tokenizer.multiple_of=128")
    found = figures(plan_lines(make_config(*words), tmp_path / "outputs"))
    assert found["model"].endswith("vocabulary 1024")


def test_a_plan_names_what_would_be_reused(
    make_config: Callable[..., TrainConfig], prepared_data: Any, outputs: Path
) -> None:
    before = sorted(outputs.rglob("*"))
    found = figures(plan_lines(make_config("steps=7"), outputs))
    assert found["tokenizer"] == f"reuse {prepared_data.tokenizer.folder}"
    assert found["tokens"] == f"reuse {prepared_data.store}"
    assert found["steps"] == "7: 896 tokens"
    # embeddings 320·16; a layer: attention 4·16·16, feed-forward 3·16·64, 2 norms; the last norm
    parameters = 320 * 16 + 2 * (4 * 16 * 16 + 3 * 16 * 64 + 2 * 16) + 16
    assert found["model"] == f"llama_pico: {parameters:,} parameters, vocabulary 320"
    assert sorted(outputs.rglob("*")) == before


def test_a_plan_estimates_the_steps_of_epochs(
    make_config: Callable[..., TrainConfig], prepared_data: Any, outputs: Path
) -> None:
    found = figures(plan_lines(make_config("epochs=2"), outputs))
    assert found["steps"].startswith("about ")


def test_dry_run_of_the_command_writes_nothing(krill_train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(krill_train.outputs.rglob("*"))
    assert krill_train("dry_run=true", "output=elsewhere") == 0
    found = figures(capsys.readouterr().out.splitlines())
    assert found["folder"] == "elsewhere"
    assert found["device"] == "cpu"
    assert sorted(krill_train.outputs.rglob("*")) == before
