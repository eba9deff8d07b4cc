"""Lists what `krill-train` would do, without doing it (dry_run=true)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from krill.config.paths import relative_path
from krill.config.schema import CustomModelConfig, TrainConfig
from krill.data.dry_run_sample import format_mix
from krill.data.inputs import RunInputs
from krill.models.build import build_meta_model
from krill.training.batch_shape import compute_training_length, resolve_batch_shape
from krill.training.compute.fp8 import describe_fp8_layers
from krill.training.compute.setup import ComputeSetup
from krill.training.preflight import run_preflight_checks


def plan_run(config: TrainConfig, inputs: RunInputs, folder: Path | None = None) -> list[str]:
    """Returns lines that describe what `krill-train` would do; writes nothing.

    Args:
        config: the run.
        inputs: those of `config`.
        folder: the assigned folder of the result; None: a new one will be made.

    Raises:
        UsageError: for everything that the run itself would reject before it starts.
    """
    from krill.training.estimate import cost

    compute = run_preflight_checks(config, inputs)
    tokenizer, store = inputs.tokenizer_folder, inputs.store_folder
    batch = resolve_batch_shape(config)
    tokens_per_step = batch.rows_per_step * config.sequence_len
    vocab_size = _get_vocab_size(config, tokenizer)
    parameters = cost.count_run_parameters(config, vocab_size)
    lines = [
        f"name        {config.name}",
        f"model       {config.model.name}: {parameters:,} parameters, vocabulary {vocab_size}",
        f"tokenizer   {'reuse' if tokenizer.is_dir() else 'train'} {relative_path(tokenizer)}",
        f"tokens      {'reuse' if store.is_dir() else 'prepare'} {relative_path(store)}",
        *format_mix(inputs.source),
        f"batch       {batch.rows_per_step} rows of {config.sequence_len} = {tokens_per_step:,} tokens per step",
        f"device      {_describe_device(config, compute)}",
        f"optimizer   {config.optimizer.name}, lr {config.lr:g}, {config.scheduler.name}",
    ]
    steps, attended = _resolve_length(config, inputs)
    if config.steps is not None:
        lines.append(f"steps       {config.steps:,}: {config.steps * tokens_per_step:,} tokens")
    elif steps is not None:
        lines.append(f"steps       about {steps:,} for {config.epochs:g} epochs")
    else:
        lines.append(
            f"steps       {config.epochs:g} epochs; the number is known once the tokens are prepared"
        )
    if config.branch is None:
        lines += cost.format_cost_lines(config, vocab_size, steps, attended)
    else:
        from krill.training.checkpoint.branch import resolve_branch, resolve_restart
        from krill.training.run_header import format_restart

        branch = resolve_branch(config.branch)
        new_steps = None if steps is None else steps - branch.step
        lines += cost.format_cost_lines(config, vocab_size, new_steps, attended)
        lines.append(f"branch      from step {branch.step} of {relative_path(branch.run_folder)}")
        if (restart := resolve_restart(branch, config)) is not None:
            lines.append(f"schedule    {format_restart(config, steps or 1, restart)}")
    result = folder or Path(config.output or inputs.outputs / "runs" / config.name)
    lines.append(f"folder      {relative_path(result)}")
    return lines


def summarize_sweep_cost(points: Sequence[tuple[TrainConfig, RunInputs]]) -> str:
    """Returns a line with the estimated time and disk space of all points of a sweep together."""
    from krill.training.estimate import cost
    from krill.training.estimate.memory import format_bytes

    seconds, disk, num_unknown = 0.0, 0, 0
    for config, inputs in points:
        vocab_size = _get_vocab_size(config, inputs.tokenizer_folder)
        steps, attended = _resolve_length(config, inputs)
        if steps is None or isinstance(config.model, CustomModelConfig):
            num_unknown += 1
            continue
        point_seconds, point_disk = cost.estimate_cost(config, vocab_size, steps, attended)
        seconds, disk = seconds + point_seconds, disk + point_disk
    unknown = f", without {num_unknown} whose cost is unknown" if num_unknown else ""
    return (
        f"total       {len(points)} points{unknown}: about {cost.format_duration(seconds)} one after another, "
        f"disk at most {format_bytes(disk)}"
    )


def _resolve_length(config: TrainConfig, inputs: RunInputs) -> tuple[int | None, float | None]:
    """Returns the number of steps and the mean number of attended tokens; None: known once the tokens exist."""
    from krill.data.store import Store

    store = inputs.store_folder
    train = Store.open(store).get_split("train") if store.is_dir() else None
    steps = config.steps
    if steps is None and train is not None:
        rows = math.ceil(train.tokens / config.sequence_len)
        steps = compute_training_length(config, rows, resolve_batch_shape(config).rows_per_step).steps
    attended = _compute_attended_tokens(store, config.sequence_len) if train and train.tokens else None
    return steps, attended


def _describe_device(config: TrainConfig, compute: ComputeSetup) -> str:
    """Returns the device, and for fp8 the layers that compute in it."""
    if compute.precision != "fp8" or isinstance(config.model, CustomModelConfig):
        return compute.device
    return f"{compute.device}, {describe_fp8_layers(build_meta_model(config.model, vocab_size=64))}"


def _get_vocab_size(config: TrainConfig, folder: Path) -> int:
    from krill.tokenizer.recipe import compute_vocab_size

    return _read_vocab_size(folder) if folder.is_dir() else compute_vocab_size(config.tokenizer)


@lru_cache(maxsize=64)
def _read_vocab_size(folder: Path) -> int:
    """Reads a tokenizer once for all points of a sweep."""
    from krill.tokenizer.artifact import load_tokenizer

    return load_tokenizer(folder).vocab_size


@lru_cache(maxsize=64)
def _compute_attended_tokens(store: Path, sequence_len: int) -> float:
    """Reads the lengths of the documents once for all points of a sweep."""
    from krill.data.store import Store
    from krill.training.estimate import cost

    return cost.compute_mean_attended_tokens(Store.open(store).get_split("train").ends, sequence_len)
