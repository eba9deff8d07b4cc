"""Estimates the memory of a training step, and suggests what to change if it does not fit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from krill.config.schema import CustomOptimizerConfig, TrainConfig
from krill.models.build import build_meta_model
from krill.models.cost import (
    MemoryEstimate,
    compute_state_bytes,
    estimate_training_memory,
    get_parameter_counts,
)
from krill.optim.groups import build_param_groups
from krill.training.batch_shape import (
    format_micro_batch_overrides,
    resolve_batch_shape,
    shrink_micro_batch,
)
from krill.training.compute.backends import select_loss
from krill.training.compute.cross_entropy import CHUNK
from krill.training.compute.device import (
    BF16_PRECISIONS,
    resolve_device,
    resolve_precision,
    resolve_shard_size,
)

CGROUP_FILE, CGROUP_ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
"""The control group of this process, and the folder that has a folder for each group."""


def estimate_step_memory(config: TrainConfig, vocab_size: int, rows: int) -> MemoryEstimate:
    """Returns the bytes of a training step with micro batches of `rows` rows, per rank.

    On the CPU, save_in_background adds the copy that is being written. The state of a custom optimizer is not
    included; Liger's loss is assumed to use krill's chunk size. DDP's buckets are the gradients themselves
    (`krill.training.compute.ddp`). With sharding, the gradients of accumulated micro batches are whole on every rank
    until the last one, when they are reduced. Weights that FSDP2 gathers for a layer, in bf16, are not included.
    """
    device, shard_size = resolve_device(config.device), resolve_shard_size(config)
    precision = resolve_precision(config.hardware.precision, device)
    model = build_meta_model(config.model, vocab_size)
    estimate = estimate_training_memory(
        model,
        _build_param_groups(config, model),
        rows,
        config.sequence_len // config.hardware.context_parallel,
        "bf16" if precision in BF16_PRECISIONS else "fp32",
        None if select_loss(config.hardware.loss, device) == "full" else CHUNK[device],
        config.hardware.gradient_checkpointing,
        has_weight_copies=precision == "bf16" and shard_size == 1,
    )
    if config.save_in_background and device == "cpu":
        estimate = replace(estimate, saving=estimate.weights + estimate.optimizer)
    sharded = ["weights", "optimizer"]
    if resolve_batch_shape(config).rows_per_rank <= rows:
        sharded.append("gradients")
    return replace(estimate, **{part: -(-getattr(estimate, part) // shard_size) for part in sharded})


def estimate_checkpoint_bytes(config: TrainConfig, vocab_size: int) -> tuple[int, int]:
    """Returns the bytes of the weights and of the optimizer state in a checkpoint, over all ranks."""
    model = build_meta_model(config.model, vocab_size)
    return 4 * get_parameter_counts(model).total, sum(
        map(compute_state_bytes, _build_param_groups(config, model))
    )


def _build_param_groups(config: TrainConfig, model: PreTrainedModel) -> list[dict[str, Any]]:
    """Returns the optimizer's parameter groups; none for a custom optimizer, whose groups are unknown."""
    return (
        []
        if isinstance(config.optimizer, CustomOptimizerConfig)
        else build_param_groups(model, config.optimizer)
    )


def get_device_memory(device: str) -> int:
    """Returns the memory in bytes: of the CUDA device; for the CPU, of the machine or of a container or SLURM job."""
    if device == "cuda":
        return torch.cuda.get_device_properties(0).total_memory
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_read_cgroup_limits()])


def _read_cgroup_limits() -> Iterator[int]:
    """Yields the memory limits of the control group (version 2) of this process and of those above it."""
    try:
        group = CGROUP_FILE.read_text().partition("0::")[2].splitlines()[0]
    except (OSError, IndexError):  # not Linux, or version 1
        return
    folder = CGROUP_ROOT / group.lstrip("/")
    for path in (folder, *folder.parents):
        with suppress(
            OSError, ValueError
        ):  # the group has no limit ("max"), or is not visible in this container
            yield int((path / "memory.max").read_text())


def format_memory_lines(config: TrainConfig, vocab_size: int, available: int) -> list[str]:
    """Returns a line on the memory of a step, and a warning with a suggestion if the device has too little.

    `available`: bytes of the device, as from `get_device_memory`.
    """
    batch = resolve_batch_shape(config)
    estimate = estimate_step_memory(config, vocab_size, batch.micro_batch_size)
    is_custom = isinstance(config.optimizer, CustomOptimizerConfig)
    parts = (
        f"{part} {'unknown' if part == 'optimizer' and is_custom else format_bytes(getattr(estimate, part))}"
        for part in ("weights", "gradients", "optimizer", "activations", "logits", "saving")
        if part != "saving" or estimate.saving
    )
    lines = [f"memory      {_format_usage(estimate, available)}: {', '.join(parts)}"]
    if estimate.total > available:
        lines.append(f"warning     {_suggest_micro_batch_size(config, vocab_size, available)}")
    return lines


def summarize_memory(config: TrainConfig, vocab_size: int) -> str:
    """Returns the estimated memory of a step and the device's memory, "about 1 GB of 16 GB"."""
    estimate = estimate_step_memory(config, vocab_size, resolve_batch_shape(config).micro_batch_size)
    return _format_usage(estimate, get_device_memory(resolve_device(config.device)))


def _format_usage(estimate: MemoryEstimate, available: int) -> str:
    return f"about {format_bytes(estimate.total)} of {format_bytes(available)}"


def _suggest_micro_batch_size(config: TrainConfig, vocab_size: int, available: int) -> str:
    batch = resolve_batch_shape(config)
    size = batch.micro_batch_size
    while size > 1:
        size = shrink_micro_batch(size, batch)
        if estimate_step_memory(config, vocab_size, size).total <= available:
            overrides = format_micro_batch_overrides(config.batch, batch, size)
            return f"not enough memory; use {overrides} for the same batch"
    return f"not enough memory even with one row at a time; use {suggest_oom_remedies(config)}"


def suggest_oom_remedies(config: TrainConfig) -> str:
    """Returns the overrides to try if not even one row fits, as text."""
    hardware = config.hardware
    remedies = [
        *([] if hardware.gradient_checkpointing else ["hardware.gradient_checkpointing=true"]),
        *(["hardware.loss=chunked"] if hardware.loss == "full" else []),
        *(["save_in_background=false"] if config.save_in_background else []),
        f"sequence_len={config.sequence_len // 2}",
        "or a smaller model=",
    ]
    return ", ".join(remedies)


def format_bytes(size: float) -> str:
    """Formats a number of bytes in GB (10⁹) or MB (10⁶)."""
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"
