"""Tests the batch shape and length of a run, and the lines of its dry run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from compositions import load_config
from trainings import plan_lines

from krill.config.schema import BatchConfig, TrainConfig
from krill.config.size_rule import compute_batch_of_tokens
from krill.errors import UsageError
from krill.training.batch_shape import (
    BatchShape,
    TrainingLength,
    compute_batch_shape,
    compute_training_length,
    describe_auto_batch,
    format_micro_batch_overrides,
    is_batch_automatic,
    with_micro_batch_size,
)
from krill.training.compute.device import (
    apply_precision,
    resolve_device,
    resolve_precision,
)


def make_batch_config(
    micro: int = 8, accumulation: int | None = None, tokens: int | Literal["auto"] | None = None
) -> BatchConfig:
    return BatchConfig(micro_batch_size=micro, gradient_accumulation_steps=accumulation, tokens=tokens)


def make_run(batch: BatchConfig, *overrides: str) -> TrainConfig:
    """Returns the configuration of a run with rows of 64 tokens."""
    return load_config("sequence_len=64", *overrides).model_copy(update={"batch": batch})


@pytest.mark.parametrize(
    ("batch_config", "world_size", "expected"),
    [
        (make_batch_config(8), 1, BatchShape(8, 1)),
        (make_batch_config(8, 3), 1, BatchShape(8, 3)),
        (make_batch_config(8, 3), 4, BatchShape(8, 3, 4)),
        (make_batch_config(8, tokens=64 * 32), 1, BatchShape(8, 4)),
        (make_batch_config(8, tokens=64 * 32), 2, BatchShape(8, 2, 2)),
        (make_batch_config(8, tokens=64 * 4), 1, BatchShape(4, 1)),  # fewer rows than micro_batch_size
        (make_batch_config(8, tokens=64 * 12), 1, BatchShape(6, 2)),  # the largest divisor
        (make_batch_config(4, tokens=64 * 7), 1, BatchShape(1, 7)),
    ],
)
def test_batch_shape(batch_config: BatchConfig, world_size: int, expected: BatchShape) -> None:
    shape = compute_batch_shape(make_run(batch_config), world_size)
    assert shape == expected
    if batch_config.tokens:
        assert shape.rows_per_step * 64 == batch_config.tokens


@pytest.mark.parametrize(
    ("tokens", "world_size", "suggestions"),
    [(100, 1, ("64", "128")), (10, 1, ("64",)), (64 * 3, 2, ("128", "256"))],
)
def test_tokens_that_are_no_multiple_are_refused_with_the_nearest_ones(
    tokens: int, world_size: int, suggestions: tuple[str, ...]
) -> None:
    with pytest.raises(UsageError) as raised:
        compute_batch_shape(make_run(make_batch_config(tokens=tokens)), world_size)
    for value in suggestions:
        assert f"use batch.tokens={value}" in str(raised.value)
        compute_batch_shape(make_run(make_batch_config(tokens=int(value))), world_size)


@pytest.mark.parametrize("world_size", [1, 2, 8])
@pytest.mark.parametrize("steps", [4, 500, 20_000])
def test_the_batch_of_the_rule_is_rounded_to_micro_batches_of_all_ranks(steps: int, world_size: int) -> None:
    config = make_run(make_batch_config(tokens="auto"), f"steps={steps}")
    most = compute_batch_of_tokens(20 * 1_572_864)  # 20 tokens per hidden parameter
    batch = min(most, (0.58 * steps**0.571) ** (1 / 0.429))
    passes = max(1, round(batch / (8 * 64 * world_size)))
    assert compute_batch_shape(config, world_size) == BatchShape(8, passes, world_size)
    assert describe_auto_batch(config) == f"rule: near {batch:,.0f}; batch.tokens=… sets it"


@pytest.mark.parametrize(
    ("batch_config", "overrides", "passes"),
    [
        (make_batch_config(tokens="auto"), ("rule=off", "steps=20000"), 1),
        (make_batch_config(tokens="auto"), ("epochs=3", "steps=null"), 1),
        (make_batch_config(accumulation=3, tokens="auto"), ("steps=20000",), 3),
        (make_batch_config(tokens=None), ("steps=20000",), 1),
    ],
)
def test_what_is_set_replaces_the_batch_of_the_rule(
    batch_config: BatchConfig, overrides: tuple[str, ...], passes: int
) -> None:
    config = make_run(batch_config, *overrides)
    assert compute_batch_shape(config) == BatchShape(8, passes)
    assert describe_auto_batch(config) is None


@pytest.mark.parametrize(
    ("batch_config", "overrides", "automatic"),
    [
        (make_batch_config(tokens="auto"), ("steps=500",), True),
        (make_batch_config(tokens="auto"), ("epochs=3", "steps=null"), True),
        (make_batch_config(tokens="auto"), ("rule=off",), False),
        (make_batch_config(accumulation=3, tokens="auto"), (), False),
        (make_batch_config(tokens=512), (), False),
    ],
)
def test_another_number_of_steps_changes_an_automatic_batch(
    batch_config: BatchConfig, overrides: tuple[str, ...], automatic: bool
) -> None:
    assert is_batch_automatic(make_run(batch_config, *overrides)) == automatic


def test_a_smaller_micro_batch_keeps_the_rows_of_the_rule() -> None:
    config = make_run(make_batch_config(tokens="auto"), "steps=500")
    shape = compute_batch_shape(config)
    assert format_micro_batch_overrides(config.batch, shape, 4).endswith("accumulation_steps=4")
    smaller = with_micro_batch_size(config, 4)
    assert compute_batch_shape(smaller).rows_per_step == shape.rows_per_step == 16
    assert smaller.lr == config.lr


def test_length_by_steps_has_no_limit_of_rows(make_config: Callable[..., TrainConfig]) -> None:
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
def test_length_by_epochs_ends_at_the_last_row(
    make_config: Callable[..., TrainConfig], epochs: str, expected: TrainingLength
) -> None:
    assert compute_training_length(make_config(f"epochs={epochs}"), rows=10, rows_per_step=4) == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_device_without_cuda() -> None:
    assert resolve_device("auto") == resolve_device("cpu") == "cpu"
    with pytest.raises(UsageError, match="device=auto or device=cpu"):
        resolve_device("cuda")


def test_precision() -> None:
    assert resolve_precision("auto", "cpu") == "fp32"
    assert resolve_precision("bf16", "cpu") == "bf16"
    assert resolve_precision("fp32", "cuda") == "fp32"


def test_bf16_is_not_used_where_the_gpu_emulates_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch counts an emulated bf16 as supported: V100 and T4."""
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert resolve_precision("auto", "cuda") == "fp32"
    with pytest.raises(UsageError, match=r"only emulates bf16; use hardware\.precision=auto"):
        resolve_precision("bf16", "cuda")
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: True)
    assert resolve_precision("auto", "cuda") == resolve_precision("bf16", "cuda") == "bf16"


def test_tf32_needs_a_gpu_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"tf32 needs a CUDA device.*hardware\.precision=fp32"):
        resolve_precision("tf32", "cpu")
    for capability, is_supported in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda capability=capability: capability)
        if is_supported:
            assert resolve_precision("tf32", "cuda") == "tf32"
        else:
            with pytest.raises(UsageError, match=r"capability 8\.0"):
                resolve_precision("tf32", "cuda")
    apply_precision("tf32")
    assert torch.get_float32_matmul_precision() == "high"
    apply_precision("fp32")
    assert torch.get_float32_matmul_precision() == "highest"


def parse_lines(lines: list[str]) -> dict[str, str]:
    return dict(line.split(maxsplit=1) for line in lines)


def test_a_dry_run_without_prepared_data_writes_nothing(
    make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    lines = parse_lines(plan_lines(make_config("epochs=2", "name=한국어"), tmp_path / "outputs"))
    assert lines["name"] == "한국어"
    assert lines["tokenizer"].startswith("train ")
    assert lines["tokens"].startswith("prepare ")
    assert lines["batch"] == "2 rows of 64 = 128 tokens per step"
    assert "is known once the tokens are prepared" in lines["steps"]
    assert lines["folder"] == str(tmp_path / "outputs" / "runs" / "한국어")
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_rounds_the_vocabulary_up(make_config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    overrides = ("tokenizer.vocab_size=1000", "tokenizer.multiple_of=128")
    lines = parse_lines(plan_lines(make_config(*overrides), tmp_path / "outputs"))
    assert lines["model"].endswith("vocabulary 1024")


def test_a_dry_run_lists_what_is_reused(
    make_config: Callable[..., TrainConfig], prepared_data: Any, outputs: Path
) -> None:
    before = sorted(outputs.rglob("*"))
    lines = parse_lines(plan_lines(make_config("steps=7"), outputs))
    assert lines["tokenizer"] == f"reuse {prepared_data.tokenizer.folder}"
    assert lines["tokens"] == f"reuse {prepared_data.store}"
    assert lines["steps"] == "7: 896 tokens"
    # embeddings 320·16; a layer: attention 4·16·16, feed-forward 3·16·64, 2 norms; the last norm
    parameters = 320 * 16 + 2 * (4 * 16 * 16 + 3 * 16 * 64 + 2 * 16) + 16
    assert lines["model"] == f"llama_pico: {parameters:,} parameters, vocabulary 320"
    assert sorted(outputs.rglob("*")) == before


def test_a_dry_run_estimates_the_steps_of_epochs(
    make_config: Callable[..., TrainConfig], prepared_data: Any, outputs: Path
) -> None:
    lines = parse_lines(plan_lines(make_config("epochs=2"), outputs))
    assert lines["steps"].startswith("about ")


def test_dry_run_of_the_command_writes_nothing(krill_train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(krill_train.outputs.rglob("*"))
    assert krill_train("dry_run=true", "output=elsewhere") == 0
    lines = parse_lines(capsys.readouterr().out.splitlines())
    assert lines["folder"] == "elsewhere"
    assert lines["device"] == "cpu"
    assert sorted(krill_train.outputs.rglob("*")) == before
