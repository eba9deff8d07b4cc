"""Applies overrides to a validated configuration, as the command line would, to plan the changed run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import yaml
from pydantic import ValidationError

from krill.config.overrides import EXCLUSIVE_KEYS
from krill.config.schema import TrainConfig
from krill.errors import UsageError
from krill.plan.run_plan import RunPlan, build_run_plan
from krill.plan.text import find_vocab_size


def change_plan(plan: RunPlan, overrides: Sequence[str]) -> RunPlan | None:
    """Returns the plan of the run with `overrides` in addition, on the same device; None: it is not a valid run.

    plan.count=N sets the ranks, as krill-plan does. The size of the vocabulary follows the tokenizer.
    """
    try:
        config = _apply_overrides(plan.config, tuple(overrides))
        vocab_size = plan.vocab_size
        if any(override.startswith("tokenizer.") for override in overrides):
            vocab_size = find_vocab_size(config.tokenizer)
        return build_run_plan(
            config, vocab_size, plan.setting.device, plan.text, plan.options, plan.first_step, plan.machine
        )
    except (UsageError, ValidationError):
        return None


def _apply_overrides(config: TrainConfig, overrides: tuple[str, ...]) -> TrainConfig:
    values = config.model_dump(by_alias=True)
    for override in overrides:
        key, _, text = override.partition("=")
        if key == "plan.count":
            key = "hardware.processes"
        _set_value(values, key, yaml.safe_load(text))
        for other in _get_excluded_keys(key):
            _set_value(values, other, None)
        if key == "lr":
            _set_value(values, "optimizer.lr", yaml.safe_load(text))
        if key == "sequence_len":
            _set_value(values, "model.max_position_embeddings", yaml.safe_load(text))
    return type(config).model_validate(values)


def _set_value(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        values = values[section]
    values[last] = value


@lru_cache(maxsize=64)
def _get_excluded_keys(key: str) -> tuple[str, ...]:
    """Returns the keys that setting `key` clears."""
    return tuple(other for pair in EXCLUSIVE_KEYS if key in pair for other in pair if other != key)
