"""Configurations that several tests share: Hydra composes each choice of options once, values are set on copies."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from itertools import zip_longest

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from krill.cli.compose import compose_config
from krill.config.overrides import clear_exclusive_keys
from krill.config.paths import CONF_DIR, list_config_groups, list_config_options
from krill.config.schema import TrainConfig
from krill.config.validation import validate_config

REQUIRED_OVERRIDES = {
    "data=files": ["data.paths=[a.txt]"],
    "tokenizer=pretrained": ["tokenizer.path=folder"],
    "tokenizer=extended": ["tokenizer.base=folder", "tokenizer.vocab_size=1000"],
    "model=auto": ["model.model_type=gpt2"],
    "model=pretrained": ["model.from=folder"],
}
"""Option → overrides of the keys that it requires the user to set."""


def _list_option_rows() -> list[tuple[str, ...]]:
    groups = (group for group in list_config_groups() if group != "experiment")
    columns = [[f"{group}={name}" for name in list_config_options(group, [CONF_DIR])] for group in groups]
    return [tuple(option for option in row if option) for row in zip_longest(*columns)]


OPTION_ROWS = _list_option_rows()
"""Choices of at most one option per group that together contain every option except for experiments."""


def compose(command: str, *overrides: str) -> DictConfig:
    """Returns what `compose_config` returns for these overrides, ten times as fast for options composed before.

    Like Hydra, it composes the options first and sets the values on the result, in the order given.
    """
    options, values = [], []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        is_option = override.key_or_group in list_config_groups() or override.is_hydra_override()
        (options if is_option else values).append(override)
    config = copy.deepcopy(_compose_options(command, *(option.input_line for option in options)))
    ConfigLoaderImpl._apply_overrides_to_config(values, config)
    return config


@cache
def _compose_options(command: str, *options: str) -> DictConfig:
    return compose_config(command, options)


@cache
def load_config(*overrides: str, command: str = "train") -> TrainConfig:
    """Returns the validated configuration for these overrides and the `REQUIRED_OVERRIDES` of their options."""
    return validate_config(TrainConfig, compose(command, *add_required_overrides(overrides)))


def add_required_overrides(overrides: Sequence[str]) -> list[str]:
    """Returns `overrides` as the command line completes them, with the `REQUIRED_OVERRIDES` of their options."""
    required = [value for option in overrides for value in REQUIRED_OVERRIDES.get(option, [])]
    return clear_exclusive_keys([*overrides, *required])


def load_option(option: str) -> TrainConfig:
    """Returns a configuration with `option`, such as model=auto, and with other options from its `OPTION_ROWS`."""
    return load_config(*next(row for row in OPTION_ROWS if option in row))
