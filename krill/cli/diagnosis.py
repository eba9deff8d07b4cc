"""Reports every error in overrides that Hydra refused, each with the override to use instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from krill.cli.compose import compose_config, is_usage_error
from krill.config.commands import COMMAND_SCHEMAS
from krill.config.key_aliases import find_foreign_key, find_renamed_key
from krill.config.overrides import expand_float_range, iterate_dotted_keys
from krill.config.paths import CONF_DIR, list_config_groups, list_config_options
from krill.config.schema import TrainConfig
from krill.config.suggestions import suggest
from krill.config.validation import format_unknown_key_error, validate_config
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
    parsed, messages = _parse_overrides(overrides)
    groups = {
        item.key_or_group: item
        for item in parsed
        if item.key_or_group in _list_groups(folders) and not isinstance(item.value(), dict)
    }
    group_errors, valid = _check_groups(groups, folders)
    messages += group_errors
    try:
        composed = compose_config(command, valid, folders)
    except Exception as other:
        if not is_usage_error(other):
            raise
        return messages or [_format_hydra_error(error)]
    known = list(iterate_dotted_keys(OmegaConf.to_container(composed)))
    for item in parsed:
        key = item.key_or_group
        if item.is_sweep_override() and not is_multirun:
            messages.append(
                f"{item.input_line}: several values; add -m to sweep, or use {key}=[…] for a list"
            )
        elif key.startswith("hydra"):
            messages += filter(None, [_describe_hydra_error(item)])
        elif key not in groups:
            key_errors = _find_key_errors(command, item, composed, known, folders)
            messages += key_errors
            if not key_errors:
                valid.append(f"{'++' if item.is_add() else ''}{key}={_get_raw_values(item)[0]}")
    try:
        validate_config(COMMAND_SCHEMAS[command], compose_config(command, valid, folders))
    except UsageError as wrong_values:
        messages += str(wrong_values).splitlines()
    except Exception as other:
        if not is_usage_error(other):
            raise
        messages.append(_format_hydra_error(other))
    return list(dict.fromkeys(messages)) or [_format_hydra_error(error)]


def _check_groups(groups: Mapping[str, Override], folders: Sequence[Path]) -> tuple[list[str], list[str]]:
    """Returns the errors of overrides of config groups, and the valid overrides, with one option each."""
    messages, valid = [], []
    for group, item in groups.items():
        if item.is_add():
            messages.append(f"{item.input_line}: use it without +")
        if item.is_delete():
            messages.append(
                f"{item.input_line}: {group} is required; use an option, as in {_get_example(group, folders)}"
            )
            continue
        errors = [_describe_unknown_option(group, option, folders) for option in _get_options(item)]
        messages += filter(None, errors)
        if not any(errors):
            valid.append(f"{group}={_get_values(item)[0]}")
    return messages, valid


def _find_key_errors(
    command: str, item: Override, composed: DictConfig, known: Sequence[str], folders: Sequence[Path]
) -> list[str]:
    """Returns what is wrong with the key of an override: it does not exist, is added twice, or is a section."""
    key = item.key_or_group
    if sections := _find_section_errors(command, item, composed, known, folders):
        return sections
    if key in known and item.is_add():
        return [f"{item.input_line}: the key exists; use {key}=…"]
    if key not in known and not item.is_add():
        return [_describe_unknown_key(command, key, known, folders)]
    return []


def _parse_overrides(overrides: Sequence[str]) -> tuple[list[Override], list[str]]:
    """Returns the overrides that Hydra can parse, without globs, and a message for each of the others."""
    parsed, messages = [], []
    for text in overrides:
        try:
            item = OverridesParser.create().parse_override(text)
            expand_float_range(item)
        except UsageError as error:
            messages.append(str(error))
        except HydraException:
            messages.append(f"cannot read {text}; quote the value: {text.partition('=')[0]}='…'")
        else:
            if _has_nested_interval(item.value()):
                messages.append(f"{text}: an interval cannot be one of several values")
            elif not isinstance(item.value(), Glob):
                parsed.append(item)
    return parsed, messages


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
    if find_renamed_key(key) or find_foreign_key(key, known):
        return format_unknown_key_error(key, known)
    group = key.partition(".")[0]
    others = list_config_options(group, [*folders, CONF_DIR]) if group in known and "." in key else {}
    keys = {name: _list_keys(command, group, name, tuple(folders)) for name in others}
    options = [f"{group}={name}" for name in keys if key in keys[name]]
    if options:
        listed = options if len(options) <= 3 else [*options[:2], f"{len(options) - 2} others"]
        return f"no such key '{key}' here; it belongs to {' or '.join(listed)}"
    return format_unknown_key_error(
        key, [*known, *_list_groups(folders), *(key for option in keys.values() for key in option)]
    )


def _find_section_errors(
    command: str, item: Override, composed: DictConfig, known: Sequence[str], folders: Sequence[Path]
) -> list[str]:
    """Returns what is wrong with the value of a section: a mapping with unknown keys, or no mapping."""
    key, value = item.key_or_group, item.value()
    if key not in known or not isinstance(
        OmegaConf.select(composed, key, throw_on_missing=False), DictConfig
    ):
        return []
    if isinstance(value, dict):
        keys = [f"{key}.{name}" for name in iterate_dotted_keys(value)]
        return [_describe_unknown_key(command, name, known, folders) for name in keys if name not in known]
    if isinstance(value, list):
        return [f"{item.input_line}: {key} is a section; set its keys, as in {key}.KEY=…"]
    return []


def _describe_hydra_error(item: Override) -> str | None:
    """Returns the message for a plugin of Hydra that krill replaces."""
    if item.key_or_group == "hydra/sweeper" and "basic" not in _get_values(item):
        return f"{item.input_line}: krill has a sweeper of its own: use sweep.search=tpe with sweep.trials=20"
    return None


@cache
def _list_keys(command: str, group: str, option: str, folders: tuple[Path, ...]) -> list[str]:
    try:
        composed = compose_config(command, [f"{group}={option}"], folders)
    except (HydraException, OmegaConfBaseException, UsageError):  # a user's option that does not compose
        return []
    return list(iterate_dotted_keys(OmegaConf.to_container(composed)))


def _list_groups(folders: Sequence[Path]) -> list[str]:
    return [name for folder in (*folders, CONF_DIR) for name in list_config_groups(folder)]


def _get_example(group: str, folders: Sequence[Path]) -> str:
    return f"{group}={next(iter(list_config_options(group, [CONF_DIR, *folders])), '…')}"


def _get_options(item: Override) -> list[Any]:
    """Returns the options that an override of a config group names: of a list, each; of a sweep, all of them."""
    value = item.value()
    return value if isinstance(value, list) else _get_values(item)


def _describe_unknown_option(group: str, option: Any, folders: Sequence[Path]) -> str | None:
    known = list_config_options(group, [*folders, CONF_DIR])
    name = str(option)
    if name in known or "," in name:
        return None
    if not isinstance(option, str):
        return (
            f"{group}: {name} is not an option; choose one by its name, as in {_get_example(group, folders)}"
        )
    if any((folder / group / f"{name}.yml").is_file() for folder in folders):
        return f"unknown option '{name}' for {group}: rename {name}.yml to {name}.yaml"
    from krill.sources.formats import COMPRESSIONS, FILE_KINDS

    path = Path(name)
    if path.stem in known and path.suffix in (".yaml", ".yml"):
        return f"unknown option '{name}' for {group}: use its name, {group}={path.stem}"
    if group == "data" and (path.suffix.lower() in (*FILE_KINDS, *COMPRESSIONS) or path.is_dir()):
        return f"unknown option '{name}' for data: for text of your own use data=files data.paths=[{name}]"
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
