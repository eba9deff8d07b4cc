"""Logs the header of a run and writes its parameter groups to optimizer.json."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from krill import atomic
from krill.config.paths import relative_path
from krill.config.rule_keys import RuleValue, format_rule_lines
from krill.config.schema import CustomOptimizerConfig, OptimizerConfig, TrainConfig
from krill.optim.groups import build_param_groups, list_parameter_assignments, summarize_groups
from krill.optim.schedules import Restart, stable_phase
from krill.runs import checkpoints
from krill.runs.record import read_status
from krill.training import ranks
from krill.training.batch_shape import describe_auto_batch
from krill.training.compute.device import resolve_shard_size
from krill.training.setup import RunSetup

log = logging.getLogger("krill")


def log_header(
    setup: RunSetup, model: Any, checkpoint: Path | None, restart: Restart | None, kernels: list[str]
) -> None:
    """Logs what is about to run: name, folder, model, tokens, steps, optimizer, device and memory."""
    config, train = setup.config, setup.store.get_split("train")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    validation = setup.store.get_split("validation")
    log.info("name        %s", config.name)
    log.info("folder      %s", relative_path(setup.folder))
    log.info(
        "model       %s: %s parameters, %s, vocabulary %d",
        config.model.name, f"{parameters:,}", config.model.family, setup.tokenizer.vocab_size,
    )  # fmt: skip
    sample = (
        f", {setup.validation_rows.targets:,} predicted per validation (eval_tokens)"
        if setup.validation_rows is not None and setup.validation_documents is not None
        else ""
    )
    log.info(
        "tokens      %s to train on in %s rows of %d (%s), %s held out%s",
        f"{train.tokens:,}", f"{len(setup.train_rows):,}", config.sequence_len, config.packing,
        f"{validation.tokens:,}", sample,
    )  # fmt: skip
    log.info(
        "steps       %d of %s tokens: %.2f epochs%s", setup.length.steps, f"{setup.tokens_per_step:,}",
        setup.epochs_at(setup.length.steps),
        _format_resume(setup, checkpoint) if checkpoint else "",
    )  # fmt: skip
    if (reason := describe_auto_batch(config)) is not None:
        log.info("batch       %s tokens per step (%s)", f"{setup.tokens_per_step:,}", reason)
    status = read_status(setup.folder) or {}  # krill-train writes plan and rule before its ranks start
    for line in format_rule_lines(RuleValue(**value) for value in status.get("rule") or ()):
        log.info(line)
    if restart is not None:
        log.info("schedule    %s", format_restart(config, setup.length.steps, restart))
    log.info("optimizer   %s", _format_optimizer(model, config.optimizer))
    reason = f" (auto: {setup.backend_reason})" if setup.backend_reason else ""
    parts = [
        setup.device.type, setup.precision, f"attention {setup.attention_backend}{reason}", *kernels,
        _format_compile(setup),
    ]  # fmt: skip
    if (world_size := ranks.get_world_size()) > 1:
        parts.insert(1, f"{world_size} ranks{_format_parallelism(config, world_size)}")
    log.info("device      %s", ", ".join(parts))
    if (plan := status.get("plan")) is not None:
        log.info("memory      %s", _format_planned_memory(plan["memory"]))


def _format_planned_memory(memory: dict[str, Any]) -> str:
    return f"about {memory['total'] / 1e9:.3g} GB of {memory['available'] / 1e9:.3g} GB"


def _format_compile(setup: RunSetup) -> str:
    reason = f" (auto: {setup.compile_reason})" if setup.compile_reason else ""
    return f"{'compiled' if setup.is_compiled else 'not compiled'}{reason}"


def _format_parallelism(config: TrainConfig, world_size: int) -> str:
    """Returns how the ranks share weights and rows, in parentheses; empty if they share neither."""
    parts = []
    if config.hardware.sharding == "hsdp":
        shards = resolve_shard_size(config)
        parts.append(f"hsdp: {world_size // shards} replicas of {shards} shards")
    elif config.hardware.sharding == "fsdp2":
        parts.append("fsdp2")
    if config.hardware.context_parallel > 1:
        parts.append(f"context parallel {config.hardware.context_parallel}")
    return f" ({', '.join(parts)})" if parts else ""


def _format_resume(setup: RunSetup, checkpoint: Path) -> str:
    run = checkpoint.parents[1]
    origin = "" if run == setup.folder else f" of {relative_path(run)}"
    return f"; resuming from step {checkpoints.parse_step(checkpoint)}{origin}"


def format_restart(config: TrainConfig, steps: int, restart: Restart) -> str:
    """Returns how the learning rate continues at the step where the schedule starts again."""
    earlier = f"{restart.factor * config.lr:.3g}"
    if restart.kind == "constant":
        return f"constant at the rate of step {restart.step}, {earlier}"
    if restart.kind == "decay":
        return f"{config.scheduler.name} again from step {restart.step}, at {config.lr:g} at once"
    warmup = stable_phase(config.scheduler, steps, restart)[0] - restart.step
    return (
        f"{config.scheduler.name} again from step {restart.step}, warmed up from {earlier} to {config.lr:g} in "
        f"{warmup} step{'s' if warmup != 1 else ''}"
    )


def _format_optimizer(model: Any, config: OptimizerConfig) -> str:
    if isinstance(config, CustomOptimizerConfig):
        return f"{config.build} at {config.lr:g}"
    groups = summarize_groups(build_param_groups(model, config))
    parts = (f"{group.name} {group.parameters:,} at {group.lr:g}" for group in groups)
    return f"{config.name}: {', '.join(parts)}"


def write_param_groups(setup: RunSetup, model: Any) -> None:
    """Writes optimizer.json: the group of each parameter, and the matrices that Muon updates in it."""
    config = setup.config.optimizer
    if isinstance(config, CustomOptimizerConfig):
        return
    groups = build_param_groups(model, config)
    table = {
        "optimizer": config.name,
        "groups": [group._asdict() for group in summarize_groups(groups)],
        "parameters": [assignment._asdict() for assignment in list_parameter_assignments(model, groups)],
    }
    atomic.write_json(setup.folder / "optimizer.json", table)
