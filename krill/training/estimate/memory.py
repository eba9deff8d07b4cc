"""Whether a training step fits into the device's memory, told before it is tried."""

from __future__ import annotations

import os
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
    resolve_batch_shape,
    resolve_device,
    resolve_precision,
    resolve_world_size,
)
from krill.training.compute.cross_entropy import CHUNK
from krill.training.compute.liger import select_loss
from krill.training.oom_retry import shrink_micro_batch, suggest_oom_remedies


def estimate_step_memory(config: TrainConfig, vocab_size: int, rows: int) -> MemoryEstimate:
    """Bytes of a training step with micro batches of `rows` rows, on each rank.

    With save_in_background the copy that is written counts where the device is the CPU, in whose memory it lies.
    The state of an optimizer of a person's own is not in it; Liger's loss is taken to have krill's chunks.
    """
    device = resolve_device(config.device)
    model = build_meta_model(config.model, vocab_size)
    whole = estimate_training_memory(
        model,
        _build_param_groups(config, model),
        rows,
        config.sequence_len,
        resolve_precision(config.hardware.precision, device),
        None if select_loss(config.hardware.loss, device) == "full" else CHUNK[device],
        config.hardware.gradient_checkpointing,
    )
    if config.save_in_background and device == "cpu":
        whole = replace(whole, saving=whole.weights + whole.optimizer)
    if config.hardware.sharding == "none":
        return whole
    share = {
        part: -(-getattr(whole, part) // resolve_world_size(config))
        for part in ("weights", "gradients", "optimizer")
    }
    return replace(whole, **share)


def estimate_checkpoint_bytes(config: TrainConfig, vocab_size: int) -> tuple[int, int]:
    """Bytes of the weights and of the optimizer's state in a checkpoint, those of all ranks together."""
    model = build_meta_model(config.model, vocab_size)
    return 4 * get_parameter_counts(model).total, sum(
        map(compute_state_bytes, _build_param_groups(config, model))
    )


def _build_param_groups(config: TrainConfig, model: PreTrainedModel) -> list[dict[str, Any]]:
    """Of the optimizer; of a person's own none are known."""
    return (
        []
        if isinstance(config.optimizer, CustomOptimizerConfig)
        else build_param_groups(model, config.optimizer)
    )


def get_device_memory(device: str) -> int:
    """Bytes of the CUDA device; of the CPU those of the machine, or of its control group (a container, a job)."""
    if device == "cuda":
        return torch.cuda.get_device_properties(0).total_memory
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(machine, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # there is none, or it says max
        return machine


def format_memory_lines(config: TrainConfig, vocab_size: int) -> list[str]:
    """What a step needs of what is there; and a warning that says what to write where that is too little."""
    batch, there = resolve_batch_shape(config), get_device_memory(resolve_device(config.device))
    needed = estimate_step_memory(config, vocab_size, batch.micro_batch_size)
    parts = (
        f"{part} {format_bytes(getattr(needed, part))}"
        for part in ("weights", "gradients", "optimizer", "activations", "logits", "saving")
        if part != "saving" or needed.saving
    )
    said = f"memory      {_format_usage(needed, there)}: {', '.join(parts)}"
    return (
        [said]
        if needed.total <= there
        else [said, f"warning     {_suggest_micro_batch_size(config, vocab_size, there)}"]
    )


def summarize_memory(config: TrainConfig, vocab_size: int) -> str:
    """What a step needs of what is there, in a few words."""
    needed = estimate_step_memory(config, vocab_size, resolve_batch_shape(config).micro_batch_size)
    return _format_usage(needed, get_device_memory(resolve_device(config.device)))


def _format_usage(needed: MemoryEstimate, there: int) -> str:
    return f"about {format_bytes(needed.total)} of {format_bytes(there)}"


def _suggest_micro_batch_size(config: TrainConfig, vocab_size: int, there: int) -> str:
    batch = resolve_batch_shape(config)
    size = batch.micro_batch_size
    while size > 1:
        size = shrink_micro_batch(size, batch)
        if estimate_step_memory(config, vocab_size, size).total <= there:
            passes = f" batch.gradient_accumulation_steps={batch.rows_per_rank // size}"
            words = f"batch.micro_batch_size={size}{'' if config.batch.tokens else passes}"
            return f"that is too much; write {words}, which is the same batch"
    return f"that is too much even for one row at a time; write {suggest_oom_remedies(config)}"


def format_bytes(size: float) -> str:
    """A number of bytes to read: 10⁹ or 10⁶ of them."""
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"
