"""Composition through Hydra: the person's folders first, and every mistake found at once."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
from krill.cli.argv import EXCLUSIVE, Typed, as_typed, clear_exclusive, quoted
from krill.cli.commands import SCHEMA
from krill.config.location import CONF_DIR, group_names, options
from krill.config.schema import InspectConfig, TrainConfig
from krill.config.validation import closest, flat_keys, unknown_key, validated
from krill.errors import UsageError

OPTIONAL = ("filters", "experiment")
"""Groups of which none need be chosen; null, which Hydra does not take on the command line, is just that."""

FREE = ("model.config.", "hardware.slurm.options")
"""What stands below is checked elsewhere: by the architecture, when the model is built; by sbatch."""

NOT_REPEATED = ("output", "resume", "dry_run", "from")
"""Keys of an earlier run that from= does not take over: they are about that run, not about what it made."""


class _UserFolders(SearchPathPlugin):
    """Puts the person's folders before krill's own."""

    folders: Sequence[Path] = ()

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in self.folders:
            search_path.prepend("user", f"file://{folder}", anchor="main")


_every_file = FileConfigSource.list


def _options_only(source: FileConfigSource, config_path: str, results_filter: ObjectType | None) -> list[str]:
    """The options of a group without its parts, whose names begin with _: in completion, in glob(*)."""
    return [name for name in _every_file(source, config_path, results_filter) if not name.startswith("_")]


_UserFolders.__module__ = "hydra_plugins.krill"  # Hydra takes plugins from that package only


def look_in(folders: Sequence[Path]) -> None:
    """Let compositions find configurations in `folders`, the first one first, and the launchers that they name."""
    from krill.cli import launchers

    _UserFolders.folders = list(folders)
    Plugins.instance().register(_UserFolders)
    launchers.register()
    # The class that is registered: Hydra loads its plugins anew, so it is not the one imported here.
    SourcesRegistry.instance().types["file"].list = _options_only  # type: ignore[assignment, method-assign]


def run(command: str, point: Any, arguments: Sequence[str], folders: Sequence[Path]) -> None:
    """Hand over to Hydra, which calls `point` once or for each point of a sweep."""
    look_in(folders)
    sys.argv = [f"krill-{command}", *arguments]
    hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name=command)(point)()


def composed(command: str, overrides: Sequence[str], folders: Sequence[Path] = ()) -> DictConfig:
    """The configuration of `command`, composed without running it."""
    look_in(folders)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            return compose(command, overrides=list(overrides))
    finally:
        GlobalHydra.instance().clear()


def rewritten(command: str, typed: Typed) -> list[str]:
    """What was typed, as Hydra reads it: from= replaced by that run's overrides, exclusive keys cleared."""
    earlier = typed.value("from")
    typed.overrides = typed.without("from")
    none = [group for group in OPTIONAL if typed.value(group) == "null"]
    overrides = [_added(quoted(word)) for word in typed.without(*none)]
    if earlier is not None:
        if command == "infer":
            raise UsageError(f"from= is for training; write model={earlier}")
        overrides = [*_repeated(Path(earlier), typed), *overrides]
    return clear_exclusive(overrides) if issubclass(SCHEMA[command], TrainConfig) else overrides


def _added(override: str) -> str:
    """An override as Hydra takes it for keys that no YAML lists: those of a free mapping."""
    return f"++{override}" if override.startswith(FREE) else override


def without_inspection(overrides: Sequence[str]) -> list[str]:
    """What was typed to krill-inspect, less the keys that no other command has."""
    own = InspectConfig.model_fields.keys() - TrainConfig.model_fields.keys()
    return [word for word in overrides if word.lstrip("+~").partition("=")[0] not in own]


def _repeated(folder: Path, typed: Typed) -> list[str]:
    """The overrides that made the run in `folder`, but those about its place and those typed anew; a group that is
    chosen anew takes its earlier details with it."""
    file = folder / ".hydra" / "overrides.yaml"
    if not file.is_file():
        raise UsageError(f"from={folder}: no run of krill there ({file} is missing)")
    parsed = OverridesParser.create().parse_overrides(as_typed(OmegaConf.load(file)))
    anew = typed.keys()
    cleared = {key for pair in EXCLUSIVE if anew.intersection(pair) for key in pair}
    dropped = {*NOT_REPEATED, *anew, *cleared}
    return [
        item.input_line or ""
        for item in parsed
        if not dropped & {item.key_or_group, item.key_or_group.partition(".")[0]}
    ]


def is_usage(error: BaseException) -> bool:
    """Whether Hydra or OmegaConf refused the command line."""
    return isinstance(error, (HydraException, OmegaConfBaseException)) or _is_null_group(error)


def _is_null_group(error: BaseException) -> bool:
    return isinstance(error, ValueError) and str(error).startswith("Config group override must be")


def problems(
    command: str, overrides: Sequence[str], folders: Sequence[Path], error: BaseException
) -> list[str]:
    """A sentence for every mistake in `overrides`: found by composing without the ones that are wrong."""
    sweep = "-m" in sys.argv or "--multirun" in sys.argv
    sentences, parsed = [], []
    for text in overrides:
        try:
            item = OverridesParser.create().parse_override(text)
        except HydraException:
            sentences.append(f"cannot read {text}; put the value in quotes: {text.partition('=')[0]}='…'")
            continue
        if _mixes(item.value()):
            sentences.append(f"{text}: an interval stands alone, it cannot be one of several values")
            continue
        parsed.append(item)
    parsed = [item for item in parsed if not isinstance(item.value(), Glob)]
    groups = {item.key_or_group: item for item in parsed if _is_group(item.key_or_group, folders)}
    good = []
    for group, item in groups.items():
        if item.is_add():
            sentences.append(f"{item.input_line}: write it without +")
        wrong = [_unknown_option(group, name, folders) for name in _values(item)]
        sentences += [sentence for sentence in wrong if sentence]
        if not any(wrong):
            good.append(f"{group}={_values(item)[0]}")
    known = list(flat_keys(OmegaConf.to_container(composed(command, good, folders))))
    for item in parsed:
        key, several = item.key_or_group, item.is_sweep_override()
        if several and not sweep:
            sentences.append(
                f"{item.input_line}: several values; add -m to sweep, or write {key}=[…] for a list"
            )
        elif key in groups or key.startswith("hydra"):
            continue
        elif key not in known and not item.is_add():
            sentences.append(_unknown_key(command, key, known, folders))
        else:
            good.append(f"{'++' if item.is_add() else ''}{key}={_raw_values(item)[0]}")
    try:
        validated(SCHEMA[command], composed(command, good, folders))
    except UsageError as wrong_values:
        sentences += str(wrong_values).splitlines()
    except (HydraException, OmegaConfBaseException) as other:
        sentences.append(str(other).splitlines()[0])
    return list(dict.fromkeys(sentences)) or [_refused(error)]


def _mixes(value: Any) -> bool:
    return isinstance(value, ChoiceSweep) and any(isinstance(item, IntervalSweep) for item in value.list)


def _refused(error: BaseException) -> str:
    """What Hydra said, on one line."""
    sentence = str(error).strip().splitlines()[0]
    if isinstance(error, MissingConfigException) and error.options:
        sentence += f". There are: {', '.join(error.options)}"
    return sentence


def _unknown_key(command: str, key: str, known: Sequence[str], folders: Sequence[Path]) -> str:
    """The sentence for a key that this configuration has not, but perhaps another option of its group."""
    group = key.partition(".")[0]
    others = options(group, [*folders, CONF_DIR]) if group in known and "." in key else {}
    keys = {name: _keys_of(command, group, name, folders) for name in others}
    having = [f"{group}={name}" for name in keys if key in keys[name]]
    if having:
        some = having if len(having) <= 3 else [*having[:2], f"{len(having) - 2} others"]
        return f"no such key '{key}' here; it belongs to {' or '.join(some)}"
    return unknown_key(key, [*known, *_groups(folders), *(key for option in keys.values() for key in option)])


def _keys_of(command: str, group: str, option: str, folders: Sequence[Path]) -> list[str]:
    try:
        return list(flat_keys(OmegaConf.to_container(composed(command, [f"{group}={option}"], folders))))
    except (HydraException, OmegaConfBaseException):  # a person's option that does not compose is not meant
        return []


def _is_group(key: str, folders: Sequence[Path]) -> bool:
    return key in _groups(folders)


def _groups(folders: Sequence[Path]) -> list[str]:
    return [name for folder in (*folders, CONF_DIR) for name in group_names(folder)]


def _unknown_option(group: str, name: str, folders: Sequence[Path]) -> str | None:
    known = options(group, [*folders, CONF_DIR])
    if name in known or "," in name:
        return None
    near = closest(name, known)
    meant = f" Did you mean {group}={near}?" if near else ""
    return f"unknown option '{name}' for {group}.{meant} There are: {', '.join(known)}"


def _values(item: Override) -> list[str]:
    return [text.strip("'") for text in _raw_values(item)]


def _raw_values(item: Override) -> list[str]:
    value = item.value()
    if isinstance(value, IntervalSweep):
        return [str(value.start)]
    if item.is_sweep_override():
        return list(item.sweep_string_iterator())
    return [item.get_value_element_as_str()]
