"""Computes the batch shape of a run and its length in steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from krill.config.run_size import RunSize, read_run_size
from krill.config.schema import BatchConfig, TrainConfig
from krill.config.size_rule import AUTO, compute_batch
from krill.errors import UsageError
from krill.training.compute.device import resolve_data_ranks, resolve_world_size


@dataclass(frozen=True)
class BatchShape:
    """The rows of a step, split over ranks and forward passes."""

    micro_batch_size: int
    accumulation_steps: int
    world_size: int = 1
    """The ranks that read rows of their own."""

    @property
    def rows_per_rank(self) -> int:
        """Rows that one rank trains on in a step."""
        return self.micro_batch_size * self.accumulation_steps

    @property
    def rows_per_step(self) -> int:
        """Rows that all ranks together train on in a step."""
        return self.rows_per_rank * self.world_size


def compute_batch_shape(config: TrainConfig, world_size: int = 1) -> BatchShape:
    """Returns the rows per forward pass and the passes per step of `world_size` ranks that read rows of their own.

    With batch.tokens=auto the passes are those whose tokens are nearest to the batch of the rule
    (`krill.config.size_rule`). Raises UsageError when a number of tokens is not a multiple of sequence_len ×
    world_size.
    """
    batch, sequence_len = config.batch, config.sequence_len
    if batch.fixed_tokens is None:
        passes = batch.gradient_accumulation_steps
        if passes is None:
            auto, unit = compute_auto_batch(config), batch.micro_batch_size * world_size * sequence_len
            passes = 1 if auto is None else round_accumulation(auto, unit)
        return BatchShape(batch.micro_batch_size, passes, world_size)
    unit = sequence_len * world_size
    tokens = batch.fixed_tokens
    rows, rest = divmod(tokens, unit)
    if rest or not rows:
        nearest = sorted({max(1, rows) * unit, (rows + 1) * unit})
        raise UsageError(
            f"batch.tokens={tokens} is not a multiple of sequence_len × processes = {unit}; "
            + " or ".join(f"use batch.tokens={value}" for value in nearest)
        )
    micro = max(size for size in range(1, min(rows, batch.micro_batch_size) + 1) if rows % size == 0)
    return BatchShape(micro, rows // micro, world_size)


def is_batch_automatic(config: TrainConfig) -> bool:
    """Returns whether the rule gives the tokens per step of a run over steps like this one."""
    return _read_size_for_batch(config) is not None


def compute_auto_batch(config: TrainConfig) -> float | None:
    """Returns the tokens per step that the rule gives; None: it does not apply, as with epochs."""
    size = _read_size_for_batch(config)
    return None if size is None or size.steps is None else compute_batch(size.parameters, size.steps)


def _read_size_for_batch(config: TrainConfig) -> RunSize | None:
    if config.batch.tokens != AUTO or config.batch.gradient_accumulation_steps is not None:
        return None
    return read_run_size(vars(config) | {"model": config.model.model_dump()})


def round_accumulation(batch: float, unit: int) -> int:
    """Returns the passes of `unit` tokens each whose tokens are nearest to `batch`, at least one."""
    return max(1, round(batch / unit))


def describe_auto_batch(config: TrainConfig) -> str | None:
    """Returns where the tokens per step come from and what sets them; None: not from the rule."""
    tokens = compute_auto_batch(config)
    return None if tokens is None else f"rule: near {tokens:,.0f}; batch.tokens=… sets it"


def resolve_batch_shape(config: TrainConfig) -> BatchShape:
    """Returns `compute_batch_shape` for the ranks that will train."""
    data_ranks = resolve_data_ranks(config, resolve_world_size(config))
    return compute_batch_shape(config, data_ranks)


def shrink_micro_batch(size: int, batch_shape: BatchShape) -> int:
    """Returns the largest micro batch of at most half of `size` rows that divides the rows of a step."""
    return max(rows for rows in range(1, size // 2 + 1) if batch_shape.rows_per_rank % rows == 0)


def format_micro_batch_overrides(batch: BatchConfig, batch_shape: BatchShape, size: int) -> str:
    """Returns the overrides that train the rows of `batch_shape` in micro batches of `size` rows, as text."""
    accumulation = f" batch.gradient_accumulation_steps={batch_shape.rows_per_rank // size}"
    return f"batch.micro_batch_size={size}{accumulation if batch.fixed_tokens is None else ''}"


def with_micro_batch_size(config: TrainConfig, size: int) -> TrainConfig:
    """Returns `config` with micro batches of `size` rows and the same number of rows per step."""
    rows = compute_batch_shape(config).rows_per_step
    batch = BatchConfig(micro_batch_size=size, gradient_accumulation_steps=rows // size, tokens=None)
    return config.model_copy(update={"batch": batch})


@dataclass(frozen=True)
class TrainingLength:
    """The length of a run."""

    steps: int
    total_rows: int | None
    """Rows to train on, when `epochs` is set; the last step is then filled up with empty rows. None: no limit."""


def compute_training_length(config: TrainConfig, rows: int, rows_per_step: int) -> TrainingLength:
    """Returns the length of a run over `rows` training rows."""
    if config.steps is not None:
        return TrainingLength(config.steps, None)
    assert config.epochs is not None
    total_rows = max(1, round(config.epochs * rows))
    return TrainingLength(math.ceil(total_rows / rows_per_step), total_rows)
