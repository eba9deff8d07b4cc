"""Reports every error in overrides that Hydra refused, each with the override to use instead."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from krill.cli.compose import compose_config, is_usage_error
from krill.config.commands import COMMAND_SCHEMAS
from krill.config.paths import CONF_DIR, list_config_groups, list_config_options
from krill.config.schema import TrainConfig
from krill.config.validation import (
    find_renamed_key,
    format_unknown_key_error,
    iterate_dotted_keys,
    suggest,
    validate_config,
)
from krill.errors import UsageError, get_first_line


def compose_train_config(overrides: Sequence[str], folders: Sequence[Path]) -> TrainConfig:
    """Returns the validated configuration of krill-train. Raises UsageError with every error in `overrides`."""
    try:
        return validate_config(TrainConfig, compose_config("train", overrides, folders))
    except Exception as error:
        if not is_usage_error(error):
            raise
        raise UsageError("\n".join(diagnose_overrides("train", overrides, folders, error))) from error


def diagnose_overrides(
    command: str,
    overrides: Sequence[str],
    folders: Sequence[Path],
    error: BaseException,
    is_multirun: bool = False,
) -> list[str]:
    """Returns a message for every error in `overrides`, found by composing without the invalid ones."""
    messages, parsed = [], []
    for text in overrides:
        try:
            item = OverridesParser.create().parse_override(text)
        except HydraException:
            messages.append(f"cannot read {text}; quote the value: {text.partition('=')[0]}='…'")
            continue
        if _has_nested_interval(item.value()):
            messages.append(f"{text}: an interval cannot be one of several values")
            continue
        parsed.append(item)
    parsed = [item for item in parsed if not isinstance(item.value(), Glob)]
    groups = {item.key_or_group: item for item in parsed if _is_group(item.key_or_group, folders)}
    valid = []
    for group, item in groups.items():
        if item.is_add():
            messages.append(f"{item.input_line}: use it without +")
        errors = [_describe_unknown_option(group, name, folders) for name in _get_values(item)]
        messages += filter(None, errors)
        if not any(errors):
            valid.append(f"{group}={_get_values(item)[0]}")
    known = list(iterate_dotted_keys(OmegaConf.to_container(compose_config(command, valid, folders))))
    for item in parsed:
        key, has_several_values = item.key_or_group, item.is_sweep_override()
        if has_several_values and not is_multirun:
            messages.append(
                f"{item.input_line}: several values; add -m to sweep, or use {key}=[…] for a list"
            )
        elif key in groups or key.startswith("hydra"):
            continue
        elif key not in known and not item.is_add():
            messages.append(_describe_unknown_key(command, key, known, folders))
        else:
            valid.append(f"{'++' if item.is_add() else ''}{key}={_get_raw_values(item)[0]}")
    try:
        validate_config(COMMAND_SCHEMAS[command], compose_config(command, valid, folders))
    except UsageError as wrong_values:
        messages += str(wrong_values).splitlines()
    except (HydraException, OmegaConfBaseException) as other:
        messages.append(get_first_line(other))
    return list(dict.fromkeys(messages)) or [_format_hydra_error(error)]


def _has_nested_interval(value: Any) -> bool:
    return isinstance(value, ChoiceSweep) and any(isinstance(item, IntervalSweep) for item in value.list)


def _format_hydra_error(error: BaseException) -> str:
    """Returns Hydra's message as one line."""
    message = get_first_line(error)
    if isinstance(error, MissingConfigException) and error.options:
        message += f". Available: {', '.join(error.options)}"
    return message


def _describe_unknown_key(command: str, key: str, known: Sequence[str], folders: Sequence[Path]) -> str:
    """Returns the message for a key that this configuration does not have, though another option of its group may."""
    if find_renamed_key(key):
        return format_unknown_key_error(key, known)
    group = key.partition(".")[0]
    others = list_config_options(group, [*folders, CONF_DIR]) if group in known and "." in key else {}
    keys = {name: _list_keys(command, group, name, folders) for name in others}
    options = [f"{group}={name}" for name in keys if key in keys[name]]
    if options:
        shown = options if len(options) <= 3 else [*options[:2], f"{len(options) - 2} others"]
        return f"no such key '{key}' here; it belongs to {' or '.join(shown)}"
    return format_unknown_key_error(
        key, [*known, *_list_groups(folders), *(key for option in keys.values() for key in option)]
    )


def _list_keys(command: str, group: str, option: str, folders: Sequence[Path]) -> list[str]:
    try:
        return list(
            iterate_dotted_keys(
                OmegaConf.to_container(compose_config(command, [f"{group}={option}"], folders))
            )
        )
    except (HydraException, OmegaConfBaseException):  # a user's option that does not compose
        return []


def _is_group(key: str, folders: Sequence[Path]) -> bool:
    return key in _list_groups(folders)


def _list_groups(folders: Sequence[Path]) -> list[str]:
    return [name for folder in (*folders, CONF_DIR) for name in list_config_groups(folder)]


def _describe_unknown_option(group: str, name: str, folders: Sequence[Path]) -> str | None:
    known = list_config_options(group, [*folders, CONF_DIR])
    if name in known or "," in name:
        return None
    return f"unknown option '{name}' for {group}. {suggest(name, known, f'{group}={{}}')}"


def _get_values(item: Override) -> list[str]:
    return [text.strip("'") for text in _get_raw_values(item)]


def _get_raw_values(item: Override) -> list[str]:
    value = item.value()
    if isinstance(value, IntervalSweep):
        return [str(value.start)]
    if item.is_sweep_override():
        return list(item.sweep_string_iterator())
    return [item.get_value_element_as_str()]
