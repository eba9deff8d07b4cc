"""Estimates what a run will cost before it starts: FLOPs, time, memory, disk (dry_run=true)."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache

import numpy as np
import torch

from krill.config.schema import CustomModelConfig, CustomOptimizerConfig, TrainConfig, WSDSchedulerConfig
from krill.models.build import build_meta_model, count_parameters
from krill.models.cost import compute_training_flops
from krill.training.batch_shape import resolve_batch_shape
from krill.training.compute.device import resolve_device, resolve_precision, resolve_world_size
from krill.training.estimate import memory
from krill.training.estimate.memory import format_bytes
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


@cache
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


@cache
def _format_cost_lines(
    key: _CostKey, vocab_size: int, steps: int | None, attended: float | None, available: int
) -> list[str]:
    config = key.config
    if isinstance(config.model, CustomModelConfig):
        return ["cost        unknown for a custom model"]
    lines = [
        *memory.format_memory_lines(config, vocab_size, available),
        _describe_disk(key, vocab_size, steps),
    ]
    if steps is None:
        return lines
    return [*_describe_compute(key, vocab_size, steps, attended), *lines]


def _describe_compute(key: _CostKey, vocab_size: int, steps: int, attended: float | None) -> list[str]:
    config = key.config
    tokens, flops = _count_tokens(config, steps), _count_flops(key, vocab_size, attended)
    bound = "" if attended is not None else ", at most: short documents take less"
    peak = _get_peak_flops(config)
    time = format_duration(_estimate_seconds(config, tokens * flops))
    return [
        f"cost        {tokens * flops:.3g} FLOP: {tokens:,} tokens of {flops:.3g}{bound}",
        f"time        about {time} at {100 * ASSUMED_MFU:.0f} % of {peak / 1e12:.3g} TFLOP/s, without validations",
    ]


def estimate_cost(
    config: TrainConfig, vocab_size: int, steps: int, attended: float | None
) -> tuple[float, int]:
    """Returns seconds of training, without validations, and bytes on disk. Arguments as in `format_cost_lines`."""
    key = _CostKey.from_config(config)
    flops = _count_tokens(config, steps) * _count_flops(key, vocab_size, attended)
    return _estimate_seconds(config, flops), _estimate_disk_bytes(key, vocab_size, steps)


def _estimate_seconds(config: TrainConfig, flops: float) -> float:
    return flops / (ASSUMED_MFU * _get_peak_flops(config) * resolve_world_size(config))


def _count_tokens(config: TrainConfig, steps: int) -> int:
    return steps * resolve_batch_shape(config).rows_per_step * config.sequence_len


@cache
def _count_flops(key: _CostKey, vocab_size: int, attended: float | None) -> float:
    """Returns the floating point operations of training on one token."""
    model = build_meta_model(key.config.model, vocab_size)
    return compute_training_flops(model, key.config.sequence_len, attended)


@cache
def _estimate_checkpoint_bytes(key: _CostKey, vocab_size: int) -> tuple[int, int]:
    return memory.estimate_checkpoint_bytes(key.config, vocab_size)


def _get_peak_flops(config: TrainConfig) -> float:
    device = resolve_device(config.device)
    precision = resolve_precision(config.hardware.precision, device)
    return get_peak_flops(device, precision, config.hardware.threads or torch.get_num_threads())


def _describe_disk(key: _CostKey, vocab_size: int, steps: int | None) -> str:
    weights, state = _estimate_checkpoint_bytes(key, vocab_size)
    total = format_bytes(_estimate_disk_bytes(key, vocab_size, steps))
    count = _count_checkpoints(key.config, steps)
    is_known = not isinstance(key.config.optimizer, CustomOptimizerConfig)
    return (
        f"disk        {'at most' if is_known else 'without the state of the optimizer'} {total}: checkpoints "
        f"{count} × {format_bytes(weights + state)}, model {format_bytes(weights)}"
    )


def _estimate_disk_bytes(key: _CostKey, vocab_size: int, steps: int | None) -> int:
    """Returns the disk space of the kept checkpoints, the one being saved, and the model."""
    weights, state = _estimate_checkpoint_bytes(key, vocab_size)
    return _count_checkpoints(key.config, steps) * (weights + state) + weights


def _count_checkpoints(config: TrainConfig, steps: int | None) -> int:
    count = config.keep_checkpoints + config.keep_best + isinstance(config.scheduler, WSDSchedulerConfig) + 1
    return count if steps is None else min(count, -(-steps // config.save_every))


def compute_mean_attended_tokens(ends: np.ndarray, sequence_len: int) -> float:
    """Returns the mean number of tokens that a token attends to, including itself.

    `ends`: the end of each document in the token stream, uint64 (documents,); documents are cut into rows of
    `sequence_len` tokens.
    """
    full_rows, rest = np.divmod(np.diff(ends.astype(np.float64), prepend=0.0), sequence_len)
    pairs = full_rows * (sequence_len * (sequence_len + 1) / 2) + rest * (rest + 1) / 2
    return float(pairs.sum() / ends[-1])


_LONGEST_SECONDS = 1000 * 365 * 86400


def format_duration(seconds: float) -> str:
    """Formats a time in seconds, or as hours:minutes:seconds."""
    if seconds > _LONGEST_SECONDS:
        return "more than 1,000 years"
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))
