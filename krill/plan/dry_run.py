"""Lists what `krill-train` would do, without doing it (dry_run=true), and plans a run that begins."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from krill.config.paths import relative_path
from krill.config.rule_keys import RuleValue, format_rule_lines
from krill.config.schema import CustomModelConfig, TrainConfig
from krill.data.dry_run_sample import format_mix
from krill.data.inputs import RunInputs
from krill.errors import KrillError
from krill.plan.report import (
    format_batch,
    format_bytes,
    format_cost_lines,
    format_duration,
    format_epochs,
    format_memory_warning,
    format_model,
)
from krill.plan.run_plan import RunPlan, build_run_plan
from krill.plan.text import find_vocab_size, read_store
from krill.plan.torch_device import describe_torch_device, identify_torch_machine
from krill.tokenizer.artifact import load_tokenizer
from krill.training.compute.setup import ComputeSetup
from krill.training.preflight import run_preflight_checks

log = logging.getLogger("krill")


def plan_run(
    config: TrainConfig, inputs: RunInputs, folder: Path | None = None, rule_values: Sequence[RuleValue] = ()
) -> list[str]:
    """Returns lines that describe what `krill-train` would do; writes nothing.

    Args:
        config: the run.
        inputs: those of `config`.
        folder: the assigned folder of the result; None: a new one will be made.
        rule_values: the values that follow the size of the run.

    Raises:
        UsageError: for everything that the run itself would reject before it starts.
    """
    compute = run_preflight_checks(config, inputs)
    tokenizer, store = inputs.tokenizer_folder, inputs.store_folder
    plan = plan_here(config, inputs)
    lines = [
        f"name        {config.name}",
        f"model       {format_model(plan)}",
        f"tokenizer   {'reuse' if tokenizer.is_dir() else 'train'} {relative_path(tokenizer)}",
        f"tokens      {'reuse' if store.is_dir() else 'prepare'} {relative_path(store)}",
        *format_mix(inputs.source),
        f"batch       {format_batch(plan)}",
        f"device      {_describe_device(config, compute)}",
        f"optimizer   {config.optimizer.name}, lr {config.lr:g}, {config.scheduler.name}",
        *format_rule_lines(rule_values),
        f"steps       {_format_steps(plan)}",
        *format_cost_lines(plan),
        *format_memory_warning(plan),
    ]
    if config.branch is not None:
        from krill.training.checkpoint.branch import resolve_branch, resolve_restart
        from krill.training.run_header import format_restart

        branch = resolve_branch(config.branch)
        lines.append(f"branch      from step {branch.step} of {relative_path(branch.run_folder)}")
        if (restart := resolve_restart(branch, config)) is not None:
            lines.append(f"schedule    {format_restart(config, config.steps or 1, restart)}")
    result = folder or Path(config.output or inputs.outputs / "runs" / config.name)
    lines.append(f"folder      {relative_path(result)}")
    return lines


def plan_here(config: TrainConfig, inputs: RunInputs) -> RunPlan:
    """Returns the plan of `config` on the device of this process.

    Raises UsageError for a model that fails on the meta device.
    """
    store = inputs.store_folder
    text = read_store(store, config.sequence_len) if store.is_dir() else None
    first_step = 0
    if config.branch is not None:
        from krill.training.checkpoint.branch import resolve_branch

        first_step = resolve_branch(config.branch).step
    return build_run_plan(
        config,
        _get_vocab_size(config, inputs.tokenizer_folder),
        describe_torch_device(config),
        text,
        first_step=first_step,
        machine=identify_torch_machine(config),
    )


def record_plan(config: TrainConfig, inputs: RunInputs) -> dict[str, Any] | None:
    """Returns the plan of a run that begins, for its status.json; None, and a line in the log, if there is none."""
    try:
        return plan_here(config, inputs).to_json()
    except KrillError as error:
        log.info("plan        unknown: %s", error)
        return None


def summarize_sweep_cost(points: Sequence[tuple[TrainConfig, RunInputs]]) -> str:
    """Returns a line with the estimated time and disk space of all points of a sweep together."""
    seconds, disk, num_unknown = 0.0, 0, 0
    for config, inputs in points:
        plan = plan_here(config, inputs)
        if plan.time is None:
            num_unknown += 1
            continue
        seconds, disk = seconds + plan.time.total, disk + sum(plan.disk.values())
    unknown = f", without {num_unknown} whose cost is unknown" if num_unknown else ""
    return (
        f"total       {len(points)} points{unknown}: about {format_duration(seconds)} one after another, "
        f"disk at most {format_bytes(disk)}"
    )


def _format_steps(plan: RunPlan) -> str:
    config, total = plan.config, plan.first_step + (plan.steps or 0)
    if config.steps is not None:
        return f"{config.steps:,}: {config.steps * plan.tokens_per_step:,} tokens"
    if plan.steps is not None:
        return f"about {total:,} for {format_epochs(plan)}"
    return f"{format_epochs(plan)}; the number is known once the tokens are prepared"


def _describe_device(config: TrainConfig, compute: ComputeSetup) -> str:
    """Returns the device, and for fp8 the layers that compute in it."""
    if compute.precision != "fp8" or isinstance(config.model, CustomModelConfig):
        return compute.device
    from krill.models.build import build_meta_model
    from krill.training.compute.fp8 import describe_fp8_layers

    return f"{compute.device}, {describe_fp8_layers(build_meta_model(config.model, vocab_size=64))}"


def _get_vocab_size(config: TrainConfig, folder: Path) -> int:
    return _read_vocab_size(folder) if folder.is_dir() else find_vocab_size(config.tokenizer)


@lru_cache(maxsize=64)
def _read_vocab_size(folder: Path) -> int:
    """Reads a tokenizer once for all points of a sweep."""
    return load_tokenizer(folder).vocab_size
