"""Composition through Hydra: the user's folders come first, and all errors are reported at once."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import krill.config.resolvers  # noqa: F401  (registers ${krill.…})
from krill.cli.argv import ParsedArguments
from krill.config.commands import COMMAND_SCHEMAS
from krill.config.overrides import EXCLUSIVE_KEYS, clear_exclusive_keys, quote_override, to_unresolved_list
from krill.config.paths import CONF_DIR, list_config_groups, list_config_options
from krill.config.schema import InspectConfig, TrainConfig
from krill.config.validation import (
    find_renamed_key,
    format_unknown_key_error,
    iterate_dotted_keys,
    suggest,
    validate_config,
)
from krill.errors import UsageError

if TYPE_CHECKING:
    from krill.sweep.session import Session

OPTIONAL_GROUPS = ("filters", "experiment")
"""Groups without a required option: group=null, which Hydra refuses on the command line, chooses none."""

UNCHECKED_PREFIXES = ("model.config.", "hardware.slurm.options")
"""Prefixes of keys that are checked elsewhere: by the architecture when the model is built, and by sbatch."""

NOT_INHERITED_KEYS = ("output", "resume", "dry_run", "from")
"""Keys of an earlier run that from= does not inherit: they concern that run, not its result."""


class _UserSearchPath(SearchPathPlugin):
    """Puts the user's folders before krill's own."""

    folders: Sequence[Path] = ()

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in self.folders:
            search_path.prepend("user", f"file://{folder}", anchor="main")


_list_all_files = FileConfigSource.list


@functools.wraps(_list_all_files)
def _list_options(source: FileConfigSource, config_path: str, results_filter: ObjectType | None) -> list[str]:
    """Lists the options of a group, for completion and glob(*), without files whose names begin with _."""
    return [name for name in _list_all_files(source, config_path, results_filter) if not name.startswith("_")]


_UserSearchPath.__module__ = "hydra_plugins.krill"  # Hydra accepts plugins from that package only


def set_search_path(folders: Sequence[Path]) -> None:
    """Registers `folders` as search path, the first one first, and the plugins that configurations name."""
    from krill.sweep.plugins import register_plugins

    _UserSearchPath.folders = list(folders)
    Plugins.instance().register(_UserSearchPath)
    register_plugins()
    # Patch the registered class: Hydra loads its plugins again, so it is not the one imported here.
    SourcesRegistry.instance().types["file"].list = _list_options  # type: ignore[assignment, method-assign]


def run_hydra(command: str, session: Session, arguments: Sequence[str], folders: Sequence[Path]) -> None:
    """Runs Hydra, which calls `session` for a single run or hands it to krill's sweeper."""
    set_search_path(folders)
    sys.argv = [f"krill-{command}", *arguments]
    hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name=command)(session)()


def compose_config(command: str, overrides: Sequence[str], folders: Sequence[Path] = ()) -> DictConfig:
    """Returns the configuration of `command`, composed without running it."""
    set_search_path(folders)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            return compose(command, overrides=list(overrides))
    finally:
        GlobalHydra.instance().clear()


def normalize_overrides(command: str, arguments: ParsedArguments) -> list[str]:
    """Returns the overrides for Hydra: quoted, with from= expanded and the other key of exclusive pairs cleared."""
    earlier = arguments.get_value("from")
    arguments.overrides = arguments.get_overrides_without("from")
    none = [group for group in OPTIONAL_GROUPS if arguments.get_value(group) == "null"]
    overrides = [
        _prefix_free_key(quote_override(override)) for override in arguments.get_overrides_without(*none)
    ]
    if earlier is not None:
        if command == "infer":
            raise UsageError(f"from= is for training; use model={earlier}")
        overrides = [*_load_overrides_of_run(Path(earlier), arguments), *overrides]
    return clear_exclusive_keys(overrides) if issubclass(COMMAND_SCHEMAS[command], TrainConfig) else overrides


def _prefix_free_key(override: str) -> str:
    """Adds the ++ that Hydra requires for keys of a free mapping, which no YAML lists."""
    return f"++{override}" if override.startswith(UNCHECKED_PREFIXES) else override


def drop_inspect_keys(overrides: Sequence[str]) -> list[str]:
    """Returns overrides of krill-inspect without the keys that no other command has."""
    own = InspectConfig.model_fields.keys() - TrainConfig.model_fields.keys()
    return [override for override in overrides if override.lstrip("+~").partition("=")[0] not in own]


def _load_overrides_of_run(folder: Path, arguments: ParsedArguments) -> list[str]:
    """Returns the overrides of the run in `folder`, without those that concern its folder or are set again.

    A group that is chosen again drops all earlier overrides of its keys.
    """
    file = folder / ".hydra" / "overrides.yaml"
    if not file.is_file():
        raise UsageError(f"from={folder}: no run of krill there ({file} is missing)")
    parsed = OverridesParser.create().parse_overrides(to_unresolved_list(OmegaConf.load(file)))
    overridden = arguments.get_keys()
    cleared = {key for pair in EXCLUSIVE_KEYS if overridden.intersection(pair) for key in pair}
    dropped = {*NOT_INHERITED_KEYS, *overridden, *cleared}
    return [
        item.input_line or ""
        for item in parsed
        if not dropped & {item.key_or_group, item.key_or_group.partition(".")[0]}
    ]


def is_usage_error(error: BaseException) -> bool:
    """Returns whether Hydra or OmegaConf refused the command line."""
    return isinstance(error, (HydraException, OmegaConfBaseException)) or _is_null_group_error(error)


def _is_null_group_error(error: BaseException) -> bool:
    return isinstance(error, ValueError) and str(error).startswith("Config group override must be")


def diagnose_overrides(
    command: str, overrides: Sequence[str], folders: Sequence[Path], error: BaseException
) -> list[str]:
    """Returns a message for every error in `overrides`, found by composing without the invalid ones."""
    sweep = "-m" in sys.argv or "--multirun" in sys.argv
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
        if has_several_values and not sweep:
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
        messages.append(str(other).splitlines()[0])
    return list(dict.fromkeys(messages)) or [_format_hydra_error(error)]


def _has_nested_interval(value: Any) -> bool:
    return isinstance(value, ChoiceSweep) and any(isinstance(item, IntervalSweep) for item in value.list)


def _format_hydra_error(error: BaseException) -> str:
    """Returns Hydra's message as one line."""
    message = str(error).strip().splitlines()[0]
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
