"""Estimates what a run will cost before it starts: FLOPs, time, memory, disk (dry_run=true)."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache

import numpy as np
import torch

from krill.config.schema import CustomModelConfig, TrainConfig, WSDSchedulerConfig
from krill.models.build import build_meta_model, count_parameters
from krill.models.cost import compute_training_flops
from krill.training.batch_shape import resolve_batch_shape
from krill.training.compute.device import resolve_device, resolve_precision, resolve_world_size
from krill.training.estimate import memory
from krill.training.estimate.memory import estimate_checkpoint_bytes, format_bytes
from krill.training.metrics.peak_flops import get_peak_flops

ASSUMED_MFU = 0.4
"""The assumed model FLOPs utilization. PaLM reports 0.46 (Chowdhery et al. 2022); krill's default run reaches 0.4 to
0.6 on a CPU. Very small models on a GPU stay far below."""


COST_KEYS = {
    "model", "sequence_len", "optimizer", "batch", "steps", "device", "hardware", "save_every", "keep_checkpoints",
    "keep_best", "save_in_background",
}  # fmt: skip
"""Keys that determine the cost of a run, besides the kind of the scheduler."""


@dataclass(frozen=True)
class _CostKey:
    """The values that determine the cost of `config`; points of a sweep with the same values are estimated once."""

    values: str
    config: TrainConfig = field(compare=False)

    @classmethod
    def from_config(cls, config: TrainConfig) -> _CostKey:
        values = config.model_dump_json(include=COST_KEYS, exclude={"optimizer": {"lr"}})
        environment = (resolve_device(config.device), resolve_world_size(config), torch.get_num_threads())
        return cls(f"{values} {config.scheduler.name} {environment}", config)


def count_run_parameters(config: TrainConfig, vocab_size: int) -> int:
    """Returns the number of parameters of the model that `config` trains."""
    return _count_run_parameters(_CostKey.from_config(config), vocab_size)


@lru_cache(maxsize=64)
def _count_run_parameters(key: _CostKey, vocab_size: int) -> int:
    return count_parameters(key.config.model, vocab_size)


def format_cost_lines(
    config: TrainConfig, vocab_size: int, steps: int | None, attended: float | None
) -> list[str]:
    """Returns the lines of the cost estimate.

    Args:
        config: the run; the cost of a custom model is unknown.
        vocab_size: the size of the tokenizer's vocabulary.
        steps: the number of optimizer steps; None: not known yet.
        attended: the mean number of tokens that a token attends to (`compute_mean_attended_tokens`); None: as if one
            document filled a row.
    """
    available = memory.get_device_memory(resolve_device(config.device))
    return list(_format_cost_lines(_CostKey.from_config(config), vocab_size, steps, attended, available))


@lru_cache(maxsize=64)
def _format_cost_lines(
    key: _CostKey, vocab_size: int, steps: int | None, attended: float | None, available: int
) -> list[str]:
    config = key.config
    if isinstance(config.model, CustomModelConfig):
        return ["cost        unknown for a custom model"]
    lines = [
        *memory.format_memory_lines(config, vocab_size, available),
        _describe_disk(config, vocab_size, steps),
    ]
    if steps is None:
        return lines
    return [*_describe_compute(config, vocab_size, steps, attended), *lines]


def _describe_compute(config: TrainConfig, vocab_size: int, steps: int, attended: float | None) -> list[str]:
    device = resolve_device(config.device)
    peak = get_peak_flops(
        device,
        resolve_precision(config.hardware.precision, device),
        config.hardware.threads or torch.get_num_threads(),
    )
    tokens = steps * resolve_batch_shape(config).rows_per_step * config.sequence_len
    flops = compute_training_flops(build_meta_model(config.model, vocab_size), config.sequence_len, attended)
    bound = "" if attended is not None else ", at most: short documents take less"
    time = _format_duration(tokens * flops / (ASSUMED_MFU * peak * resolve_world_size(config)))
    return [
        f"cost        {tokens * flops:.3g} FLOP: {tokens:,} tokens of {flops:.3g}{bound}",
        f"time        about {time} at {100 * ASSUMED_MFU:.0f} % of {peak / 1e12:.3g} TFLOP/s, without validations",
    ]


def _describe_disk(config: TrainConfig, vocab_size: int, steps: int | None) -> str:
    """Returns the disk space of the kept checkpoints, the one being saved, and the model."""
    weights, state = estimate_checkpoint_bytes(config, vocab_size)
    checkpoint_size = weights + state
    count = config.keep_checkpoints + config.keep_best + isinstance(config.scheduler, WSDSchedulerConfig) + 1
    if steps is not None:
        count = min(count, -(-steps // config.save_every))
    total = format_bytes(count * checkpoint_size + weights)
    return (
        f"disk        at most {total}: checkpoints {count} × {format_bytes(checkpoint_size)}, "
        f"model {format_bytes(weights)}"
    )


def compute_mean_attended_tokens(ends: np.ndarray, sequence_len: int) -> float:
    """Returns the mean number of tokens that a token attends to, including itself.

    `ends`: the end of each document in the token stream, uint64 (documents,); documents are cut into rows of
    `sequence_len` tokens.
    """
    full_rows, rest = np.divmod(np.diff(ends.astype(np.float64), prepend=0.0), sequence_len)
    pairs = full_rows * (sequence_len * (sequence_len + 1) / 2) + rest * (rest + 1) / 2
    return float(pairs.sum() / ends[-1])


def _format_duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))
