"""What a run amounts to before it begins: batch, steps, device."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from krill.config.schema import BatchConfig, TrainConfig
from krill.errors import UsageError
from krill.runs.slurm import get_node_name


@dataclass(frozen=True)
class BatchShape:
    """How rows are spread over steps, forward passes and ranks."""

    micro_batch_size: int
    accumulation_steps: int
    world_size: int = 1

    @property
    def rows_per_rank(self) -> int:
        """Of one step."""
        return self.micro_batch_size * self.accumulation_steps

    @property
    def rows_per_step(self) -> int:
        return self.rows_per_rank * self.world_size


def world_size_from_env() -> int:
    """How many ranks whoever started this process (torchrun, accelerate launch, krill) has announced."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def resolve_world_size(config: TrainConfig) -> int:
    """How many processes train together: those that were started, else those that krill is to start."""
    if world_size_from_env() > 1:
        return world_size_from_env()
    processes, slurm = config.hardware.processes, config.hardware.slurm
    assert processes != "auto"  # krill.launch.auto_processes has counted
    return processes * (slurm.nodes if slurm else 1)


def compute_batch_shape(batch: BatchConfig, sequence_len: int, ranks: int = 1) -> BatchShape:
    """Rows per forward pass and passes per step; from batch.tokens when that is set.

    Raises UsageError when batch.tokens is no whole number of rows for every rank.
    """
    if batch.tokens is None:
        return BatchShape(batch.micro_batch_size, batch.gradient_accumulation_steps or 1, ranks)
    unit = sequence_len * ranks
    rows, rest = divmod(batch.tokens, unit)
    if rest or not rows:
        nearest = sorted({max(1, rows) * unit, (rows + 1) * unit})
        raise UsageError(
            f"batch.tokens={batch.tokens} is no multiple of sequence_len × processes = {unit}; "
            + " or ".join(f"write batch.tokens={value}" for value in nearest)
        )
    micro = max(size for size in range(1, min(rows, batch.micro_batch_size) + 1) if rows % size == 0)
    return BatchShape(micro, rows // micro, ranks)


def resolve_batch_shape(config: TrainConfig) -> BatchShape:
    """`compute_batch_shape` of the ranks that will train."""
    return compute_batch_shape(config.batch, config.sequence_len, resolve_world_size(config))


@dataclass(frozen=True)
class TrainingLength:
    """How long a run is."""

    steps: int
    total_rows: int | None
    """Rows in all, when epochs says so; the last step is then filled up with empty rows."""


def compute_training_length(config: TrainConfig, rows: int, rows_per_step: int) -> TrainingLength:
    """Steps of the run over `rows` training rows."""
    if config.steps is not None:
        return TrainingLength(config.steps, None)
    assert config.epochs is not None
    last = max(1, round(config.epochs * rows))
    return TrainingLength(math.ceil(last / rows_per_step), last)


def resolve_device(asked: str) -> str:
    """cuda or cpu. UsageError when CUDA is asked for and not there."""
    import torch

    if asked == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            f"device=cuda: no usable CUDA device on {get_node_name()}; write device=auto or device=cpu"
        )
    return "cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu"


def resolve_precision(asked: str, device: str) -> str:
    """bf16 or fp32, for hardware.precision on `device`."""
    import torch

    if asked == "auto":
        return "bf16" if device == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    return asked
