"""Differences of a configuration from the experiment that its model is named after, and from its last start."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krill.config.paths import CONF_DIR, list_config_options
from krill.config.secrets import mask_secrets
from krill.runs.compare import flatten_config
from krill.runs.record import read_config

if TYPE_CHECKING:
    from krill.config.schema import TrainConfig

EXPERIMENT_KEYS = (
    "name", "data.name", "tokenizer.name", "tokenizer.vocab_size", "optimizer.name", "lr", "optimizer.weight_decay",
    "scheduler.min_ratio", "sequence_len", "packing", "steps", "epochs", "batch.micro_batch_size",
)  # fmt: skip
ROUNDING_KEYS = {
    "batch.micro_batch_size", "batch.gradient_accumulation_steps", "batch.tokens", "device", "hardware.processes",
    "hardware.sharding", "hardware.attention", "hardware.loss", "hardware.liger", "hardware.compile",
    "hardware.threads", "hardware.context_parallel",
}  # fmt: skip
"""Keys that change the order of summation: losses stay the same up to rounding."""


def diff_from_experiment(config: TrainConfig, choices: Mapping[str, str]) -> list[str]:
    """Returns what differs from the experiment that the model is named after, unless it is among the `choices`."""
    name = config.model.name
    if name not in list_config_options("experiment", [CONF_DIR]) or choices.get("experiment") == name:
        return []
    theirs = _compose_experiment(name)
    ours = flatten_config(config.model_dump())
    parts = [
        f"{key}={ours.get(key)} ({theirs.get(key)})"
        for key in EXPERIMENT_KEYS
        if ours.get(key) != theirs.get(key)
    ]
    return [f"differs     from experiment={name}: {', '.join(parts)}"] if parts else []


@cache
def _compose_experiment(name: str) -> dict[str, Any]:
    """Returns the keys of krill's own experiment, composed once for all points of a sweep."""
    from krill.cli.compose import compose_config
    from krill.config.schema import TrainConfig
    from krill.config.validation import validate_config

    config = validate_config(TrainConfig, compose_config("train", [f"experiment={name}"]))
    return flatten_config(config.model_dump())


def diff_from_last_start(config: TrainConfig, folder: Path) -> list[str]:
    """Returns the keys whose value differs from config.yaml of the run that resumes in `folder`."""
    before = flatten_config(read_config(folder))
    if not before:  # killed before it was written
        return []
    now = flatten_config(mask_secrets(config.model_dump(mode="json")))
    changed = [key for key in now if key not in ("resume", "output") and now[key] != before.get(key)]
    lines = [f"changed     {key}={now[key]} (was {before.get(key)})" for key in changed]
    if ROUNDING_KEYS & set(changed):
        lines.append(
            "            from here on losses equal those of an uninterrupted run up to rounding, not to the bit"
        )
    return lines
