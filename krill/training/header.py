"""What a run says of itself when it begins: a few lines on the screen, and which parameter is in which group."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from krill import atomic
from krill.config.schema import CustomModel, CustomOptimizer, Optimizer, TrainConfig
from krill.optim.groups import describe, parameter_groups, places
from krill.runs import checkpoints
from krill.runs.record import shown
from krill.training import memory
from krill.training.setting import Setting

log = logging.getLogger("krill")


def tell_beginning(setting: Setting, model: Any, checkpoint: Path | None, kernels: list[str]) -> None:
    """A few lines that tell what is about to run."""
    config, train = setting.config, setting.store.split("train")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    held = setting.store.split("validation")
    log.info("name        %s", config.name)
    log.info("folder      %s", shown(setting.folder))
    log.info(
        "model       %s: %s parameters, %s, vocabulary %d",
        config.model.name, f"{parameters:,}", config.model.family, setting.tokenizer.vocab_size,
    )  # fmt: skip
    log.info(
        "tokens      %s to train on in %s rows of %d (%s), %s held out",
        f"{train.tokens:,}", f"{len(setting.rows):,}", config.sequence_len, config.packing, f"{held.tokens:,}",
    )  # fmt: skip
    log.info(
        "steps       %d of %s tokens: %.2f epochs%s", setting.length.steps, f"{setting.tokens_per_step:,}",
        setting.epochs_at(setting.length.steps),
        _going_on(setting, checkpoint) if checkpoint else "",
    )  # fmt: skip
    log.info("optimizer   %s", _optimizer_line(model, config.optimizer))
    why = f" (auto: {setting.why})" if setting.why else ""
    how = [setting.device.type, setting.precision, f"attention {setting.backend}{why}", *kernels]
    if setting.shape.ranks > 1:
        how.insert(1, f"{setting.shape.ranks} ranks{_shared(config)}")
    log.info("device      %s", ", ".join(how))
    if not isinstance(config.model, CustomModel):
        log.info("memory      %s", memory.short(config, setting.tokenizer.vocab_size))


def _shared(config: TrainConfig) -> str:
    return " (fsdp2)" if config.hardware.sharding == "fsdp2" else ""


def _going_on(setting: Setting, checkpoint: Path) -> str:
    run = checkpoint.parents[1]
    whose = "" if run == setting.folder else f" of {shown(run)}"
    return f"; going on from step {checkpoints.step(checkpoint)}{whose}"


def _optimizer_line(model: Any, config: Optimizer) -> str:
    if isinstance(config, CustomOptimizer):
        return f"{config.build} at {config.lr:g}"
    groups = describe(parameter_groups(model, config))
    parts = (f"{group.name} {group.parameters:,} at {group.lr:g}" for group in groups)
    return f"{config.name}: {', '.join(parts)}"


def keep_groups(setting: Setting, model: Any) -> None:
    """optimizer.json: which parameter is in which group, and the matrices that Muon sees in it."""
    config = setting.config.optimizer
    if isinstance(config, CustomOptimizer):
        return
    groups = parameter_groups(model, config)
    table = {
        "optimizer": config.name,
        "groups": [group._asdict() for group in describe(groups)],
        "parameters": [place._asdict() for place in places(model, groups)],
    }
    atomic.write_json(setting.folder / "optimizer.json", table)
