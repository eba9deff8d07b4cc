"""Times steps of a training: `python -m krill.launch.measured_steps FOLDER`, started by krill.launch.measurement."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from krill import atomic
from krill.config.schema import BatchConfig, TrainConfig
from krill.errors import DONE, KrillError, get_first_line
from krill.launch.measurement import REQUEST, RESULT
from krill.resources import is_out_of_memory, paused_garbage_collection, release_memory
from krill.signals import die_with_parent

if TYPE_CHECKING:
    from krill.training.metrics.step_timer import StepTimer

NEVER = 10**9
"""An interval of steps that is longer than the measurement."""

MIN_SYNTHETIC_ROWS = 64
"""Rows of random tokens; longer measurements repeat them."""


def main(folder: Path) -> int:
    """Writes what was measured, or the error, to the folder; returns the exit code."""
    die_with_parent()
    request = json.loads((folder / REQUEST).read_bytes())
    try:
        result = _measure(request, folder)
    except KrillError as error:
        atomic.write_json(folder / RESULT, {"error": str(error)})
        return error.exit_code
    atomic.write_json(folder / RESULT, result)
    return DONE


def _measure(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    with paused_garbage_collection():
        import torch

        from krill.training.metrics.throughput import get_peak_memory
        from krill.training.run import time_training_steps
    config = TrainConfig.model_validate(request["config"])
    prepared_at = time.time()
    tokenizer, store = _get_inputs(request, config, folder)
    preparation = time.time() - prepared_at
    sizes, startup = [], 0.0
    for index, (rows, passes) in enumerate(request["sizes"]):
        run_folder = folder / f"run-{index}"
        run_folder.mkdir()
        short = _shorten(config, rows, passes, request["is_compiled"])
        try:
            timer = time_training_steps(short, run_folder, store, tokenizer)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise KrillError(
                f"out of memory with {rows} rows of {config.sequence_len} tokens at a time; use a smaller "
                f"batch.micro_batch_size ({get_first_line(error)})"
            ) from error
        if not index:
            startup = _compute_startup(timer) - request["started_at"] - preparation
        samples = [asdict(sample) for sample in timer.samples]
        peak = get_peak_memory(timer.device)
        sizes.append({"rows": rows, "passes": passes, "samples": samples, "peak": peak})
        del timer
        release_memory()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
    return {"sizes": sizes, "startup": startup}


def _compute_startup(timer: StepTimer) -> float:
    """Returns when the first step began, by time.time(), later by what the first steps took longer than others.

    The time in which other processes had the core does not count.
    """
    from krill.training.metrics.step_timer import WARMUP_STEPS

    assert timer.first_step_at is not None
    steady = median(sample.step for sample in timer.samples) * WARMUP_STEPS
    return timer.first_step_at - timer.waited_before + max(0.0, timer.warmup_seconds - steady)


def _get_inputs(request: dict[str, Any], config: TrainConfig, folder: Path) -> tuple[Path, Path]:
    """Returns the folders of the tokenizer and of the tokens."""
    if request["inputs"]:
        tokenizer, store = map(Path, request["inputs"])
        return tokenizer, store
    from krill.data.synthetic import write_synthetic_inputs

    rows = max(MIN_SYNTHETIC_ROWS, *(rows for rows, _ in request["sizes"]))
    return write_synthetic_inputs(folder, request["vocab_size"], config.sequence_len, rows)


def _shorten(config: TrainConfig, rows: int, passes: int, is_compiled: bool) -> TrainConfig:
    """Returns `config` with steps of this size, and nothing but steps."""
    from krill.training.metrics.step_timer import MAX_STEPS, WARMUP_STEPS

    return config.model_copy(
        update={
            "batch": BatchConfig(micro_batch_size=rows, gradient_accumulation_steps=passes, tokens=None),
            "hardware": config.hardware.model_copy(update={"compile": is_compiled}),
            "steps": MAX_STEPS + WARMUP_STEPS + 1,
            "epochs": None,
            "eval_every": NEVER,
            "save_every": NEVER,
            "log_every": NEVER,
            "sample_every": None,
            "sample_prompt": None,
            "trackers": [],
        }
    )


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
