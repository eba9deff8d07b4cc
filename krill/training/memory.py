"""Whether a training step fits into the device's memory, told before it is tried."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from krill.config.schema import CustomOptimizer, TrainConfig
from krill.models.build import skeleton
from krill.models.cost import Memory, parameters, state_bytes, training_memory
from krill.optim.groups import parameter_groups
from krill.training.cross_entropy import CHUNK
from krill.training.fitting import next_smaller, remedies
from krill.training.kernels import choose_loss
from krill.training.plan import device_name, precision, ranks_of, shape_of


def memory_of(config: TrainConfig, vocab_size: int, rows: int) -> Memory:
    """Bytes of a training step with micro batches of `rows` rows, on each rank.

    With save_in_background the copy that is written counts where the device is the CPU, in whose memory it lies.
    The state of an optimizer of a person's own is not in it; Liger's loss is taken to have krill's chunks.
    """
    device = device_name(config.device)
    model = skeleton(config.model, vocab_size)
    whole = training_memory(
        model,
        _groups(config, model),
        rows,
        config.sequence_len,
        precision(config.hardware.precision, device),
        None if choose_loss(config.hardware.loss, device) == "full" else CHUNK[device],
        config.hardware.gradient_checkpointing,
    )
    if config.save_in_background and device == "cpu":
        whole = replace(whole, saving=whole.weights + whole.optimizer)
    if config.hardware.sharding == "none":
        return whole
    share = {
        part: -(-getattr(whole, part) // ranks_of(config)) for part in ("weights", "gradients", "optimizer")
    }
    return replace(whole, **share)


def saved_bytes(config: TrainConfig, vocab_size: int) -> tuple[int, int]:
    """Bytes of the weights and of the optimizer's state in a checkpoint, those of all ranks together."""
    model = skeleton(config.model, vocab_size)
    return 4 * parameters(model).total, sum(map(state_bytes, _groups(config, model)))


def _groups(config: TrainConfig, model: PreTrainedModel) -> list[dict[str, Any]]:
    """Of the optimizer; of a person's own none are known."""
    return [] if isinstance(config.optimizer, CustomOptimizer) else parameter_groups(model, config.optimizer)


def device_memory(device: str) -> int:
    """Bytes of the CUDA device; of the CPU those of the machine, or of its control group (a container, a job)."""
    if device == "cuda":
        return torch.cuda.get_device_properties(0).total_memory
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(machine, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # there is none, or it says max
        return machine


def lines(config: TrainConfig, vocab_size: int) -> list[str]:
    """What a step needs of what is there; and a warning that says what to write where that is too little."""
    batch, there = shape_of(config), device_memory(device_name(config.device))
    needed = memory_of(config, vocab_size, batch.micro_batch_size)
    parts = (
        f"{part} {in_bytes(getattr(needed, part))}"
        for part in ("weights", "gradients", "optimizer", "activations", "logits", "saving")
        if part != "saving" or needed.saving
    )
    said = f"memory      {_share(needed, there)}: {', '.join(parts)}"
    return [said] if needed.total <= there else [said, f"warning     {_advice(config, vocab_size, there)}"]


def short(config: TrainConfig, vocab_size: int) -> str:
    """What a step needs of what is there, in a few words."""
    needed = memory_of(config, vocab_size, shape_of(config).micro_batch_size)
    return _share(needed, device_memory(device_name(config.device)))


def _share(needed: Memory, there: int) -> str:
    return f"about {in_bytes(needed.total)} of {in_bytes(there)}"


def _advice(config: TrainConfig, vocab_size: int, there: int) -> str:
    batch = shape_of(config)
    size = batch.micro_batch_size
    while size > 1:
        size = next_smaller(size, batch)
        if memory_of(config, vocab_size, size).total <= there:
            passes = f" batch.gradient_accumulation_steps={batch.rows_of_rank // size}"
            words = f"batch.micro_batch_size={size}{'' if config.batch.tokens else passes}"
            return f"that is too much; write {words}, which is the same batch"
    return f"that is too much even for one row at a time; write {remedies(config)}"


def in_bytes(size: float) -> str:
    """A number of bytes to read: 10⁹ or 10⁶ of them."""
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"
