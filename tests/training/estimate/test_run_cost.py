"""The cost estimate of a run agrees with the cost functions and the files on disk, and suggests a batch that fits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from source_files import write_texts
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
VOCAB_SIZE = 320


def parse_lines(lines: list[str]) -> dict[str, str]:
    return dict(line.split(maxsplit=1) for line in lines)


def estimate(config: TrainConfig, steps: int | None = 50, attended: float | None = None) -> dict[str, str]:
    return parse_lines(cost.format_cost_lines(config, VOCAB_SIZE, steps, attended))


@pytest.fixture(autouse=True)
def peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "get_peak_flops", lambda device, precision, threads: 5e9 * threads)


def test_estimate_shows_flops_and_time(make_config: Configure) -> None:
    config = make_config("batch.gradient_accumulation_steps=3", "hardware.threads=2")
    each = compute_training_flops(build_meta_model(config.model, VOCAB_SIZE), 64)
    tokens = 50 * 2 * 3 * 64
    lines = estimate(config)
    assert (
        lines["cost"]
        == f"{each * tokens:.3g} FLOP: {tokens:,} tokens of {each:.3g}, at most: short documents take less"
    )
    seconds = each * tokens / (0.4 * 10e9)
    assert lines["time"].startswith(f"about {seconds:.1f} s at 40 % of 0.01 TFLOP/s")
    shorter = compute_training_flops(build_meta_model(config.model, VOCAB_SIZE), 64, 3.0)
    assert (
        estimate(config, attended=3.0)["cost"]
        == f"{shorter * tokens:.3g} FLOP: {tokens:,} tokens of {shorter:.3g}"
    )
    assert "at 40 %" in estimate(config, steps=10**7)["time"]
    assert "1 day" in estimate(config, steps=10**7)["time"]


@pytest.mark.parametrize(
    "extra_overrides",
    [
        (), ("hardware.loss=full",), ("hardware.gradient_checkpointing=true",), ("optimizer=adamw",),
        ("hardware.precision=bf16",), ("batch.tokens=768",), ("model=qwen3_pico",),
        ("model=auto", "model.model_type=gpt2", "+model.config.attn_pdrop=0.0", "+model.config.n_layer=2"),
    ],
)  # fmt: skip
def test_memory_line_agrees_with_the_cost_function(
    make_config: Configure, extra_overrides: tuple[str, ...]
) -> None:
    config = make_config(*extra_overrides)
    model = build_meta_model(config.model, VOCAB_SIZE)
    expected = estimate_training_memory(
        model,
        build_param_groups(model, config.optimizer),
        compute_batch_shape(config.batch, 64).micro_batch_size,
        64,
        "bf16" if config.hardware.precision == "bf16" else "fp32",
        None if config.hardware.loss == "full" else CHUNK["cpu"],
        config.hardware.gradient_checkpointing,
    )
    needed, _, parts = estimate(config)["memory"].partition(": ")
    assert needed == f"about {format_bytes(expected.total)} of {format_bytes(get_device_memory('cpu'))}"
    names = ("weights", "gradients", "optimizer", "activations", "logits")
    assert parts == ", ".join(f"{name} {format_bytes(getattr(expected, name))}" for name in names)
    assert needed.removeprefix("about ") == memory.summarize_memory(config, VOCAB_SIZE).removeprefix("about ")


def test_disk_line_counts_the_checkpoints(train_in: Any, make_config: Configure) -> None:
    """The kept checkpoints and one that is being saved, each as large as the checkpoints of a real run."""
    config = make_config("keep_checkpoints=2", "keep_best=false", "optimizer=adamw")
    (saved, *_) = checkpoints.list_checkpoints(train_in(config) / "checkpoints")
    size = sum((saved / name).stat().st_size for name in ("model.safetensors", "optimizer.pt"))
    expected = estimate_step_memory(config, VOCAB_SIZE, 1)
    checkpoint_size = expected.weights + expected.optimizer
    assert checkpoint_size == pytest.approx(size, rel=0.15)  # the names of small tensors take space too
    disk = estimate(config)["disk"]
    assert f"checkpoints 3 × {format_bytes(checkpoint_size)}, model {format_bytes(expected.weights)}" in disk
    assert disk.startswith(f"at most {format_bytes(3 * checkpoint_size + expected.weights)}")
    more = make_config("keep_checkpoints=2", "scheduler=wsd", "optimizer=adamw")
    assert "checkpoints 5 ×" in estimate(more)["disk"]
    assert "checkpoints 2 ×" in estimate(more, steps=3)["disk"]  # at steps 2 and 3
    assert "checkpoints 5 ×" in estimate(more, steps=None)["disk"]


def test_sharding_does_not_change_the_disk_space(make_config: Configure) -> None:
    sharded = make_config("hardware.processes=2", "hardware.sharding=fsdp2")
    assert estimate(sharded)["disk"] == estimate(make_config())["disk"]
    assert (
        estimate_step_memory(sharded, VOCAB_SIZE, 1).weights
        == estimate_step_memory(make_config(), VOCAB_SIZE, 1).weights // 2
    )


def test_ranks_share_weights_and_rows(make_config: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of accumulated micro batches stay whole; DDP's buckets are the gradients."""
    one = estimate_step_memory(make_config(), VOCAB_SIZE, 2)
    assert estimate_step_memory(make_config("hardware.processes=2"), VOCAB_SIZE, 2) == one
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    for sharding, size in (("fsdp2", 8), ("hsdp", 4)):
        config = make_config(f"hardware.sharding={sharding}")
        sharded = estimate_step_memory(config, VOCAB_SIZE, 2)
        for part in ("weights", "gradients", "optimizer"):
            assert getattr(sharded, part) == -(-getattr(one, part) // size), part
        accumulated = estimate_step_memory(config, VOCAB_SIZE, 1)
        assert (accumulated.weights, accumulated.gradients) == (sharded.weights, one.gradients)
    bf16 = make_config("hardware.precision=bf16")
    sharded = make_config("hardware.precision=bf16", "hardware.sharding=fsdp2")
    saved = [estimate_step_memory(config, VOCAB_SIZE, 2).activations for config in (bf16, sharded)]
    matrices = sum(
        p.numel() for name, p in build_meta_model(bf16.model, VOCAB_SIZE).named_parameters() if "proj" in name
    )
    assert saved[0] - saved[1] == 2 * matrices  # autocast's copies
    cut = estimate_step_memory(make_config("hardware.context_parallel=2"), VOCAB_SIZE, 2)
    assert cut.activations == pytest.approx(one.activations / 2, rel=0.01)
    assert (cut.weights, cut.gradients) == (one.weights, one.gradients)


@pytest.mark.parametrize(
    ("extra_overrides", "accumulation"),
    [((), " batch.gradient_accumulation_steps=4"), (("batch.tokens=512",), "")],
)
def test_warning_suggests_a_micro_batch_that_fits(
    make_config: Configure,
    monkeypatch: pytest.MonkeyPatch,
    extra_overrides: tuple[str, ...],
    accumulation: str,
) -> None:
    config = make_config(
        "batch.micro_batch_size=8", "sequence_len=64", "hardware.loss=full", *extra_overrides
    )
    available = estimate_step_memory(config, VOCAB_SIZE, 3).total
    monkeypatch.setattr(memory, "get_device_memory", lambda device: available)
    advice = f"use batch.micro_batch_size=2{accumulation} for the same batch"
    assert estimate(config)["warning"] == f"not enough memory; {advice}"
    assert (
        estimate_step_memory(config, VOCAB_SIZE, 2).total
        <= available
        < estimate_step_memory(config, VOCAB_SIZE, 4).total
    )

    monkeypatch.setattr(
        memory, "get_device_memory", lambda device: estimate_step_memory(config, VOCAB_SIZE, 1).total - 1
    )
    assert (
        "even with one row at a time; use hardware.gradient_checkpointing=true" in estimate(config)["warning"]
    )
    monkeypatch.setattr(
        memory, "get_device_memory", lambda device: estimate_step_memory(config, VOCAB_SIZE, 8).total
    )
    assert "warning" not in estimate(config)


def test_device_memory_is_at_most_the_memory_of_the_machine() -> None:
    with open("/proc/meminfo") as file:
        assert 10**8 < get_device_memory("cpu") <= 1024 * int(file.readline().split()[1]) + 2**20


def test_device_memory_is_at_most_the_limit_of_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SLURM limits the group of a job, above that of the process."""
    group = tmp_path / "slurm" / "job_1" / "task_0"
    group.mkdir(parents=True)
    for folder, limit in ((group, "max"), (group.parent, "300000000"), (group.parents[1], "400000000")):
        (folder / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "cgroup").write_text("1:name=systemd:/other\n0::/slurm/job_1/task_0\n")
    monkeypatch.setattr(memory, "CGROUP_ROOT", tmp_path)
    monkeypatch.setattr(memory, "CGROUP_FILE", tmp_path / "cgroup")
    assert get_device_memory("cpu") == 300_000_000
    (tmp_path / "cgroup").unlink()  # not Linux
    assert get_device_memory("cpu") > 400_000_000


def test_mean_attended_tokens_of_documents_cut_into_rows() -> None:
    lengths = [3, 64, 65, 200, 1]
    pieces = [3, 64, 64, 1, 64, 64, 64, 8, 1]
    ends = np.cumsum(lengths).astype(np.uint64)
    assert cost.compute_mean_attended_tokens(ends, 64) == pytest.approx(compute_mean_attention_span(pieces))


def test_dry_run_uses_the_lengths_of_prepared_documents(
    make_config: Configure, prepared_data: Any, outputs: Path
) -> None:
    ends = Store.open(prepared_data.store).get_split("train").ends
    config = make_config("epochs=2")
    lines = parse_lines(plan_lines(config, outputs))
    lengths = np.diff(ends, prepend=np.uint64(0)).tolist()
    pieces = [min(64, length - start) for length in lengths for start in range(0, length, 64)]
    each = compute_training_flops(
        build_meta_model(config.model, VOCAB_SIZE), 64, compute_mean_attention_span(pieces)
    )
    assert lines["cost"].endswith(f" tokens of {each:.3g}")
    assert lines["memory"].startswith("about ")


def test_dry_run_before_preparation_shows_only_memory_and_disk_for_epochs(
    make_config: Configure, tmp_path: Path
) -> None:
    lines = parse_lines(plan_lines(make_config("epochs=2"), tmp_path))
    assert {"memory", "disk"} <= set(lines)
    assert not {"cost", "time"} & set(lines)


def test_dry_run_shows_the_share_of_each_source(make_config: Configure, tmp_path: Path) -> None:
    for name, count in (("a", 10), ("b", 30)):
        write_texts(tmp_path / f"{name}.jsonl", [f"the same length {index:03}" for index in range(count)])
    paths = f"data.paths=[{{path: {tmp_path}/a.jsonl, weight: 2}}, {tmp_path}/b.jsonl]"
    lines = parse_lines(plan_lines(make_config("data=files", paths), tmp_path))
    assert lines["mix"] == "b.jsonl 60.0 %, a.jsonl 40.0 % (size x weight)"
    assert "mix" not in parse_lines(plan_lines(make_config(), tmp_path))


def test_cost_of_a_custom_model_is_unknown(make_config: Configure, tmp_path: Path) -> None:
    values = make_config().model_dump()
    values["model"] = {
        "name": "mine", "family": "custom", "build": "mine.py:build", "max_position_embeddings": 64, "options": {},
    }  # fmt: skip
    config = TrainConfig.model_validate(values)
    assert cost.format_cost_lines(config, VOCAB_SIZE, 5, None) == ["cost        unknown for a custom model"]


def test_header_shows_the_memory(
    train_in: Any, make_config: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "krill")
    config = make_config("steps=1")
    train_in(config)
    assert f"memory      {memory.summarize_memory(config, VOCAB_SIZE)}" in [
        line.getMessage() for line in caplog.records
    ]
