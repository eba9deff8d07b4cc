"""Retries a run that is out of memory with smaller micro batches; rows and their order stay the same.

An attempt is a whole run in its folder, so the next one resumes like any interrupted run: from the newest checkpoint,
or from the start. The size that fits is recorded in status.json and used when the same command runs again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from krill.config.schema import TrainConfig
from krill.errors import KrillError, get_first_line
from krill.resources import is_out_of_memory, release_memory
from krill.runs.record import Record, read_status
from krill.training import ranks
from krill.training.batch_shape import (
    compute_batch_shape,
    format_micro_batch_overrides,
    resolve_batch_shape,
    shrink_micro_batch,
    with_micro_batch_size,
)

ResultT = TypeVar("ResultT")
log = logging.getLogger("krill")
MICRO_BATCH_KEY = "micro_batch_size"
"""Key of status.json: the micro batch size of a run that did not fit with the requested one."""


def retry_on_oom(attempt: Callable[[TrainConfig], ResultT], config: TrainConfig, folder: Path) -> ResultT:
    """Returns the result of `attempt`, which is retried with smaller micro batches while it runs out of memory.

    Only for a single process: several ranks would all have to shrink at the same step.

    Raises KrillError if the smallest batch does not fit, and everything else that `attempt` raises.
    """
    if ranks.get_world_size() > 1:
        try:
            return attempt(config)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise KrillError(
                f"out of memory with {_suggest_for_ranks(config)} ({get_first_line(error)})"
            ) from error
    requested = compute_batch_shape(config)
    recorded_size = (read_status(folder) or {}).get(MICRO_BATCH_KEY, requested.micro_batch_size)
    size = min(requested.micro_batch_size, recorded_size)
    if size < requested.micro_batch_size:
        log.info("batch       %d rows at a time; %d did not fit before", size, requested.micro_batch_size)
    while True:
        try:
            return attempt(
                config if size == requested.micro_batch_size else with_micro_batch_size(config, size)
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if size == 1:
                raise KrillError(
                    f"out of memory with one row of {config.sequence_len} tokens at a time; use "
                    f"{suggest_oom_remedies(config)}"
                ) from error
            message = get_first_line(error)
        # Outside of the except block, where the error no longer holds the attempt's frames and their memory.
        release_memory()
        smaller = shrink_micro_batch(size, requested)
        log.warning(
            "out of memory with %d rows at a time: resuming with %d, %d forward passes per step; the effective batch "
            "remains %d rows (%s)",
            size, smaller, requested.rows_per_step // smaller, requested.rows_per_step, message,
        )  # fmt: skip
        size = smaller
        Record(folder).update(**{MICRO_BATCH_KEY: size})


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


def _suggest_for_ranks(config: TrainConfig) -> str:
    """Returns what did not fit on a rank, and the overrides to use instead, as text."""
    batch, remedies = resolve_batch_shape(config), suggest_oom_remedies(config)
    if config.hardware.sharding == "none":
        remedies = f"hardware.sharding=fsdp2 resume=false, {remedies}"
    if batch.micro_batch_size == 1:
        return f"one row of {config.sequence_len} tokens at a time on each rank; use {remedies}"
    overrides = format_micro_batch_overrides(
        config.batch, batch, shrink_micro_batch(batch.micro_batch_size, batch)
    )
    return (
        f"{batch.micro_batch_size} rows at a time on each rank; use {overrides} for the same batch, which resumes "
        f"from the last checkpoint; or {remedies}"
    )
