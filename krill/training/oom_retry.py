"""Out of memory: the micro batch shrinks until it fits, and the run goes on; its rows and their order stay.

An attempt is a whole run in its folder, so that the next one goes on as any run does that was stopped: from the
newest checkpoint, or from the start. The size that was found stays in status.json, for the same command given again.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from krill.config.schema import BatchConfig, TrainConfig
from krill.errors import KrillError
from krill.runs.record import Record, read_status
from krill.training import ranks
from krill.training.batch_shape import BatchShape, compute_batch_shape

ResultT = TypeVar("ResultT")
log = logging.getLogger("krill")
MICRO_BATCH_KEY = "micro_batch_size"
"""In status.json, of a run that did not fit as it was asked for."""

OOM_MESSAGES = ("DefaultCPUAllocator: can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What a RuntimeError says where torch has no class of its own for it: on the CPU, and for cuBLAS's workspace."""


def retry_on_oom(attempt: Callable[[TrainConfig], ResultT], config: TrainConfig, folder: Path) -> ResultT:
    """What `attempt` returns, tried with ever smaller micro batches while it runs out of memory.

    One process only: of several ranks each would have to shrink at the same step.

    Raises KrillError where one row at a time does not fit, and whatever else `attempt` raises.
    """
    if ranks.get_world_size() > 1:
        return attempt(config)
    asked = compute_batch_shape(config.batch, config.sequence_len)
    size = min(
        asked.micro_batch_size, (read_status(folder) or {}).get(MICRO_BATCH_KEY, asked.micro_batch_size)
    )
    if size < asked.micro_batch_size:
        log.info("batch       %d rows at a time, since %d did not fit before", size, asked.micro_batch_size)
    while True:
        try:
            return attempt(config if size == asked.micro_batch_size else with_micro_batch_size(config, size))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if size == 1:
                raise KrillError(
                    f"out of memory with one row of {config.sequence_len} tokens at a time; write {suggest_oom_remedies(config)}"
                ) from error
            said = str(error).partition("\n")[0]
        # Here, where the error and with it the frames of the attempt are gone, its memory can be given back.
        release_memory()
        smaller = shrink_micro_batch(size, asked)
        log.warning(
            "out of memory with %d rows at a time: going on with %d, %d forward passes a step; the effective batch "
            "stays %d rows (%s)",
            size, smaller, asked.rows_per_step // smaller, asked.rows_per_step, said,
        )  # fmt: skip
        size = smaller
        Record(folder).update(**{MICRO_BATCH_KEY: size})


def is_out_of_memory(error: BaseException) -> bool:
    """Of the device, or of the machine as far as the operating system says so instead of killing the process."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OOM_MESSAGES)


def shrink_micro_batch(size: int, asked: BatchShape) -> int:
    """The largest number of rows up to half of `size` that divides a step."""
    return max(rows for rows in range(1, size // 2 + 1) if asked.rows_per_rank % rows == 0)


def with_micro_batch_size(config: TrainConfig, size: int) -> TrainConfig:
    """`config` with micro batches of `size` rows and as many rows a step as before."""
    rows = compute_batch_shape(config.batch, config.sequence_len).rows_per_step
    batch = BatchConfig(micro_batch_size=size, gradient_accumulation_steps=rows // size, tokens=None)
    return config.model_copy(update={"batch": batch})


def release_memory() -> None:
    """Give back what nothing refers to any more: model, optimizer and trainer hold each other in cycles."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def suggest_oom_remedies(config: TrainConfig) -> str:
    """What to write where not even one row fits."""
    hardware = config.hardware
    ways = [
        *([] if hardware.gradient_checkpointing else ["hardware.gradient_checkpointing=true"]),
        *(["hardware.loss=chunked"] if hardware.loss == "full" else []),
        *(["save_in_background=false"] if config.save_in_background else []),
        f"sequence_len={config.sequence_len // 2}",
        "or a smaller model=",
    ]
    return ", ".join(ways)
