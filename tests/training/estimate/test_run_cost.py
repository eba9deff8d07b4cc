"""What a run is said to cost beforehand: the cost functions' numbers, what lies on the disk, what to write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trainings import plan_lines

from krill.config.schema import TrainConfig
from krill.data.store import Store
from krill.models.build import build_meta_model
from krill.models.cost import compute_mean_attention_span, compute_training_flops, estimate_training_memory
from krill.optim.groups import build_param_groups
from krill.runs import checkpoints
from krill.training.batch_shape import compute_batch_shape
from krill.training.compute.cross_entropy import CHUNK
from krill.training.estimate import cost, memory
from krill.training.estimate.memory import estimate_step_memory, format_bytes, get_device_memory

Configure = Callable[..., TrainConfig]
VOCABULARY = 320


def told(lines: list[str]) -> dict[str, str]:
    return dict(line.split(maxsplit=1) for line in lines)


def costs(config: TrainConfig, steps: int | None = 50, attended: float | None = None) -> dict[str, str]:
    return told(cost.format_cost_lines(config, VOCABULARY, steps, attended))


@pytest.fixture(autouse=True)
def peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "get_peak_flops", lambda device, precision, threads: 5e9 * threads)


def test_flops_and_time(make_config: Configure) -> None:
    config = make_config("batch.gradient_accumulation_steps=3", "hardware.threads=2")
    each = compute_training_flops(build_meta_model(config.model, VOCABULARY), 64)
    tokens = 50 * 2 * 3 * 64
    found = costs(config)
    assert (
        found["cost"]
        == f"{each * tokens:.3g} FLOP: {tokens:,} tokens of {each:.3g}, at most: short documents take less"
    )
    seconds = each * tokens / (0.4 * 10e9)
    assert found["time"].startswith(f"about {seconds:.1f} s at 40 % of 0.01 TFLOP/s")
    shorter = compute_training_flops(build_meta_model(config.model, VOCABULARY), 64, 3.0)
    assert (
        costs(config, attended=3.0)["cost"]
        == f"{shorter * tokens:.3g} FLOP: {tokens:,} tokens of {shorter:.3g}"
    )
    assert "at 40 %" in costs(config, steps=10**7)["time"]
    assert "1 day" in costs(config, steps=10**7)["time"]


@pytest.mark.parametrize(
    "words",
    [
        (), ("hardware.loss=full",), ("hardware.gradient_checkpointing=true",), ("optimizer=adamw",),
        ("hardware.precision=bf16",), ("batch.tokens=768",), ("model=qwen3_pico",),
        ("model=auto", "model.model_type=gpt2", "+model.config.attn_pdrop=0.0", "+model.config.n_layer=2"),
    ],
)  # fmt: skip
def test_memory_is_that_of_the_cost_function(make_config: Configure, words: tuple[str, ...]) -> None:
    config = make_config(*words)
    model = build_meta_model(config.model, VOCABULARY)
    expected = estimate_training_memory(
        model,
        build_param_groups(model, config.optimizer),
        compute_batch_shape(config.batch, 64).micro_batch_size,
        64,
        "bf16" if config.hardware.precision == "bf16" else "fp32",
        None if config.hardware.loss == "full" else CHUNK["cpu"],
        config.hardware.gradient_checkpointing,
    )
    needed, _, parts = costs(config)["memory"].partition(": ")
    assert needed == f"about {format_bytes(expected.total)} of {format_bytes(get_device_memory('cpu'))}"
    names = ("weights", "gradients", "optimizer", "activations", "logits")
    assert parts == ", ".join(f"{name} {format_bytes(getattr(expected, name))}" for name in names)
    assert needed.removeprefix("about ") == memory.summarize_memory(config, VOCABULARY).removeprefix("about ")


def test_checkpoints_on_the_disk(train_in: Any, make_config: Configure) -> None:
    """As many as are kept and one that is being saved, each as large as the ones that a run leaves."""
    config = make_config("keep_checkpoints=2", "keep_best=false", "optimizer=adamw")
    (saved, *_) = checkpoints.list_checkpoints(train_in(config) / "checkpoints")
    size = sum((saved / name).stat().st_size for name in ("model.safetensors", "optimizer.pt"))
    cost = estimate_step_memory(config, VOCABULARY, 1)
    assert cost.weights + cost.optimizer == pytest.approx(size, rel=0.15)  # small tensors with names
    each = format_bytes(cost.weights + cost.optimizer)
    assert f"checkpoints 3 × {each}, the model {format_bytes(cost.weights)}" in costs(config)["disk"]
    assert costs(config)["disk"].startswith(
        f"at most {format_bytes(3 * (cost.weights + cost.optimizer) + cost.weights)}"
    )
    more = make_config("keep_checkpoints=2", "scheduler=wsd", "optimizer=adamw")
    assert "checkpoints 5 ×" in costs(more)["disk"]
    assert "checkpoints 2 ×" in costs(more, steps=3)["disk"]  # at steps 2 and 3
    assert "checkpoints 5 ×" in costs(more, steps=None)["disk"]


def test_shards_take_as_much_of_the_disk_as_a_whole(make_config: Configure) -> None:
    sharded = make_config("hardware.processes=2", "hardware.sharding=fsdp2")
    assert costs(sharded)["disk"] == costs(make_config())["disk"]
    assert (
        estimate_step_memory(sharded, VOCABULARY, 1).weights
        == estimate_step_memory(make_config(), VOCABULARY, 1).weights // 2
    )


@pytest.mark.parametrize(
    ("words", "passes"), [((), " batch.gradient_accumulation_steps=4"), (("batch.tokens=512",), "")]
)
def test_too_much_memory_says_which_batch_fits(
    make_config: Configure, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], passes: str
) -> None:
    config = make_config("batch.micro_batch_size=8", "sequence_len=64", "hardware.loss=full", *words)
    there = estimate_step_memory(config, VOCABULARY, 3).total
    monkeypatch.setattr(memory, "get_device_memory", lambda device: there)
    advice = f"write batch.micro_batch_size=2{passes}, which is the same batch"
    assert costs(config)["warning"] == f"that is too much; {advice}"
    assert (
        estimate_step_memory(config, VOCABULARY, 2).total
        <= there
        < estimate_step_memory(config, VOCABULARY, 4).total
    )

    monkeypatch.setattr(
        memory, "get_device_memory", lambda device: estimate_step_memory(config, VOCABULARY, 1).total - 1
    )
    assert (
        "even for one row at a time; write hardware.gradient_checkpointing=true" in costs(config)["warning"]
    )
    monkeypatch.setattr(
        memory, "get_device_memory", lambda device: estimate_step_memory(config, VOCABULARY, 8).total
    )
    assert "warning" not in costs(config)


def test_memory_of_this_machine_is_no_more_than_it_has() -> None:
    with open("/proc/meminfo") as file:
        assert 10**8 < get_device_memory("cpu") <= 1024 * int(file.readline().split()[1]) + 2**20


def test_tokens_attended_to_in_documents_that_rows_cut() -> None:
    lengths = [3, 64, 65, 200, 1]
    pieces = [3, 64, 64, 1, 64, 64, 64, 8, 1]
    ends = np.cumsum(lengths).astype(np.uint64)
    assert cost.compute_mean_attended_tokens(ends, 64) == pytest.approx(compute_mean_attention_span(pieces))


def test_a_plan_takes_the_documents_that_are_prepared(
    make_config: Configure, prepared_data: Any, outputs: Path
) -> None:
    ends = Store.open(prepared_data.store).get_split("train").ends
    config = make_config("epochs=2")
    found = told(plan_lines(config, outputs))
    lengths = np.diff(ends, prepend=np.uint64(0)).tolist()
    pieces = [min(64, length - start) for length in lengths for start in range(0, length, 64)]
    each = compute_training_flops(
        build_meta_model(config.model, VOCABULARY), 64, compute_mean_attention_span(pieces)
    )
    assert found["cost"].endswith(f" tokens of {each:.3g}")
    assert found["memory"].startswith("about ")


def test_before_the_tokens_are_prepared_an_epoch_has_memory_and_disk_only(
    make_config: Configure, tmp_path: Path
) -> None:
    found = told(plan_lines(make_config("epochs=2"), tmp_path))
    assert {"memory", "disk"} <= set(found)
    assert not {"cost", "time"} & set(found)


def test_a_model_of_ones_own_is_not_known(make_config: Configure, tmp_path: Path) -> None:
    values = make_config().model_dump()
    values["model"] = {
        "name": "mine", "family": "custom", "build": "mine.py:build", "max_position_embeddings": 64, "options": {},
    }  # fmt: skip
    config = TrainConfig.model_validate(values)
    assert cost.format_cost_lines(config, VOCABULARY, 5, None) == [
        "cost        not known beforehand of a model of your own"
    ]


def test_the_header_tells_the_memory(
    train_in: Any, make_config: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "krill")
    config = make_config("steps=1")
    train_in(config)
    assert f"memory      {memory.summarize_memory(config, VOCABULARY)}" in [
        line.getMessage() for line in caplog.records
    ]
