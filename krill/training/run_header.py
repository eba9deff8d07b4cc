"""What a run says of itself when it begins: a few lines on the screen, and which parameter is in which group."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from krill import atomic
from krill.config.schema import CustomModelConfig, CustomOptimizerConfig, OptimizerConfig, TrainConfig
from krill.optim.groups import build_param_groups, list_parameter_assignments, summarize_groups
from krill.runs import checkpoints
from krill.runs.record import relative_path
from krill.training.estimate import memory
from krill.training.setup import RunSetup

log = logging.getLogger("krill")


def log_header(setting: RunSetup, model: Any, checkpoint: Path | None, kernels: list[str]) -> None:
    """A few lines that tell what is about to run."""
    config, train = setting.config, setting.store.get_split("train")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    held = setting.store.get_split("validation")
    log.info("name        %s", config.name)
    log.info("folder      %s", relative_path(setting.folder))
    log.info(
        "model       %s: %s parameters, %s, vocabulary %d",
        config.model.name, f"{parameters:,}", config.model.family, setting.tokenizer.vocab_size,
    )  # fmt: skip
    log.info(
        "tokens      %s to train on in %s rows of %d (%s), %s held out",
        f"{train.tokens:,}", f"{len(setting.train_rows):,}", config.sequence_len, config.packing, f"{held.tokens:,}",
    )  # fmt: skip
    log.info(
        "steps       %d of %s tokens: %.2f epochs%s", setting.length.steps, f"{setting.tokens_per_step:,}",
        setting.epochs_at(setting.length.steps),
        _format_resume(setting, checkpoint) if checkpoint else "",
    )  # fmt: skip
    log.info("optimizer   %s", _format_optimizer(model, config.optimizer))
    why = f" (auto: {setting.backend_reason})" if setting.backend_reason else ""
    how = [setting.device.type, setting.precision, f"attention {setting.attention_backend}{why}", *kernels]
    if setting.batch_shape.world_size > 1:
        how.insert(1, f"{setting.batch_shape.world_size} ranks{_format_sharding(config)}")
    log.info("device      %s", ", ".join(how))
    if not isinstance(config.model, CustomModelConfig):
        log.info("memory      %s", memory.summarize_memory(config, setting.tokenizer.vocab_size))


def _format_sharding(config: TrainConfig) -> str:
    return " (fsdp2)" if config.hardware.sharding == "fsdp2" else ""


def _format_resume(setting: RunSetup, checkpoint: Path) -> str:
    run = checkpoint.parents[1]
    whose = "" if run == setting.folder else f" of {relative_path(run)}"
    return f"; going on from step {checkpoints.parse_step(checkpoint)}{whose}"


def _format_optimizer(model: Any, config: OptimizerConfig) -> str:
    if isinstance(config, CustomOptimizerConfig):
        return f"{config.build} at {config.lr:g}"
    groups = summarize_groups(build_param_groups(model, config))
    parts = (f"{group.name} {group.parameters:,} at {group.lr:g}" for group in groups)
    return f"{config.name}: {', '.join(parts)}"


def write_param_groups(setting: RunSetup, model: Any) -> None:
    """optimizer.json: which parameter is in which group, and the matrices that Muon sees in it."""
    config = setting.config.optimizer
    if isinstance(config, CustomOptimizerConfig):
        return
    groups = build_param_groups(model, config)
    table = {
        "optimizer": config.name,
        "groups": [group._asdict() for group in summarize_groups(groups)],
        "parameters": [place._asdict() for place in list_parameter_assignments(model, groups)],
    }
    atomic.write_json(setting.folder / "optimizer.json", table)
