"""Composition through Hydra: the user's folders come first."""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.hydra import Hydra
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

import krill.config.resolvers  # noqa: F401  (registers ${krill.…})
from krill.cli.argv import ParsedArguments
from krill.config.overrides import (
    ALTERNATIVE_KEYS,
    EXCLUSIVE_KEYS,
    MODEL_COMMANDS,
    clear_exclusive_keys,
    format_text_override,
    get_override_key,
    quote_override,
)
from krill.config.paths import CONF_DIR, get_outputs_root, list_config_files
from krill.config.secrets import MASK
from krill.config.yaml_files import check_config_file
from krill.errors import KrillError, UsageError

if TYPE_CHECKING:
    from krill.runs.resolve import Need
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
    """Lists the options of a group, for completion and glob(*), without files whose names begin with _ or a dot."""
    names = _list_all_files(source, config_path, results_filter)
    return [name for name in names if not name.startswith(("_", "."))]


_load_any_config = FileConfigSource.load_config


@functools.wraps(_load_any_config)
def _load_config(source: FileConfigSource, config_path: str) -> ConfigResult:
    """Loads a file of a configuration folder; raises UsageError for a mistake in one of the user's."""
    folder = Path(source.path)
    if folder in _UserSearchPath.folders:
        file = folder / f"{config_path.removesuffix('.yaml')}.yaml"
        check_config_file(file, os.path.dirname(config_path), [*_UserSearchPath.folders, CONF_DIR])
    return _load_any_config(source, config_path)


_compose_mode = Hydra.get_mode


@functools.wraps(_compose_mode)
def _get_mode(self: Hydra, config_name: str | None, overrides: list[str]) -> RunMode | None:
    """Returns hydra.mode. Hydra composes everything once more for it; this is skipped where nothing can set it."""
    if any("hydra" in override for override in overrides) or _mention_hydra(_UserSearchPath.folders):
        return _compose_mode(self, config_name, overrides)
    return None


def _mention_hydra(folders: Sequence[Path]) -> bool:
    return any(b"hydra" in file.read_bytes() for folder in folders for file in list_config_files(folder))


_UserSearchPath.__module__ = "hydra_plugins.krill"  # Hydra accepts plugins from that package only


def set_search_path(folders: Sequence[Path]) -> None:
    """Registers `folders` as search path, the first one first."""
    _UserSearchPath.folders = list(folders)
    Plugins.instance().register(_UserSearchPath)
    # conf/hydra/launcher has other options with these names.
    for name in ("submitit_local", "submitit_slurm"):
        ConfigStore.instance().repo["hydra"]["launcher"].pop(f"{name}.yaml", None)
    # Patch the registered class: Hydra loads its plugins again, so it is not the one imported here.
    source = SourcesRegistry.instance().types["file"]
    source.list, source.load_config = _list_options, _load_config  # type: ignore[assignment, method-assign]
    Hydra.get_mode = _get_mode  # type: ignore[method-assign]


def run_hydra(command: str, session: Session, arguments: Sequence[str], folders: Sequence[Path]) -> None:
    """Runs Hydra, which calls `session` for a single run or hands it to krill's sweeper."""
    set_search_path(folders)
    sys.argv = [f"krill-{command}", *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # otherwise Hydra prints an error and exits
    try:
        hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name=command)(session)()
    except KeyError as error:
        if not _is_variable_that_hydra_copies(error):
            raise
        raise UsageError(
            f"hydra.job.env_copy: the environment variable {error.args[0]} is not set; set it, or leave it out"
        ) from error
    finally:
        del os.environ["HYDRA_FULL_ERROR"]


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
    """Returns the overrides for Hydra: quoted, with continue= and from= expanded and exclusive keys cleared."""
    if (continued := arguments.get_value("continue")) is not None:
        arguments.overrides = _expand_continue(command, continued, arguments)
    earlier = arguments.get_value("from")
    arguments.overrides = arguments.get_overrides_without("from")
    none = [group for group in OPTIONAL_GROUPS if arguments.get_value(group) == "null"]
    overrides = [
        _prefix_free_key(quote_override(override)) for override in arguments.get_overrides_without(*none)
    ]
    if earlier is not None:
        if command in MODEL_COMMANDS:
            raise UsageError(f"from= is for training; use model={earlier}")
        overrides = [*_load_overrides_of_run(earlier, arguments), *overrides]
    return overrides if command in MODEL_COMMANDS else clear_exclusive_keys(overrides)


def _expand_continue(command: str, run: str, arguments: ParsedArguments) -> list[str]:
    """Returns overrides that train `run` for longer: its own, and a branch from its last checkpoint."""
    from krill.runs.checkpoints import list_checkpoints, parse_step
    from krill.runs.claim import RESUME_MODES
    from krill.runs.resolve import CONTINUABLE

    if command != "train":
        raise UsageError(f"continue= is for krill-train; it is set for krill-{command}")
    redundant: list[str] = [key for key in ("from", "branch") if key in arguments.get_keys()]
    if arguments.get_value("resume") not in (None, "true", "false", *RESUME_MODES):
        redundant.append("resume")
    if redundant:
        keys = " and ".join(f"{key}=" for key in redundant)
        raise UsageError(f"continue={run} starts from that run's last checkpoint: leave {keys} out")
    folder = _resolve_run("continue", run, CONTINUABLE, arguments)
    checkpoint = list_checkpoints(folder / "checkpoints")[-1]
    step, steps = parse_step(checkpoint), arguments.get_value("steps") or "null"
    if steps == "null" or (steps.isdecimal() and int(steps) <= step):
        raise UsageError(
            f"continue={run}: it is at step {step}; set steps= to the number of steps of the whole run, more than "
            f"{step}, such as steps={2 * step}"
        )
    expanded = [f"from={folder}", format_text_override("branch", str(checkpoint))]
    if "branch_schedule" not in arguments.get_keys():
        expanded.append("branch_schedule=auto")
    return [*expanded, *arguments.get_overrides_without("continue")]


def _resolve_run(key: str, run: str, need: Need, arguments: ParsedArguments) -> Path:
    """Returns the folder of the run that `key`=`run` names, and logs it unless only a configuration is printed."""
    from krill.launch.run_names import resolve_named_run
    from krill.runs.resolve import resolve_run_folder

    if arguments.is_print_only:
        return resolve_run_folder(key, run, get_outputs_root(), need)
    return Path(resolve_named_run(key, run, need))


def _prefix_free_key(override: str) -> str:
    """Adds the ++ that Hydra requires for keys of a free mapping, which no YAML lists."""
    return f"++{override}" if override.startswith(UNCHECKED_PREFIXES) else override


def drop_inspect_keys(overrides: Sequence[str]) -> list[str]:
    """Returns overrides of krill-inspect without the keys that no other command has."""
    from krill.config.schema import InspectConfig, TrainConfig

    own = InspectConfig.model_fields.keys() - TrainConfig.model_fields.keys()
    return [override for override in overrides if get_override_key(override) not in own]


def _load_overrides_of_run(run: str, arguments: ParsedArguments) -> list[str]:
    """Returns the overrides of the run that from= names, without those that concern its folder or are set again.

    A group that is chosen again drops all earlier overrides of its keys.
    """
    from krill.runs.record import read_overrides
    from krill.runs.resolve import OVERRIDES

    folder = _resolve_run("from", run, OVERRIDES, arguments)
    parsed = OverridesParser.create().parse_overrides(read_overrides(folder))
    overridden = arguments.get_keys()
    cleared = {
        key for pair in (*EXCLUSIVE_KEYS, *ALTERNATIVE_KEYS) if overridden.intersection(pair) for key in pair
    }
    dropped = {*NOT_INHERITED_KEYS, *overridden, *cleared}
    inherited = [
        item for item in parsed if not dropped & {item.key_or_group, item.key_or_group.partition(".")[0]}
    ]
    if masked := [item.key_or_group for item in inherited if MASK in str(item.value())]:
        raise UsageError(
            f"from={folder}: secrets are not recorded; set again: {' '.join(f'{key}=…' for key in masked)}"
        )
    return [item.input_line or "" for item in inherited]


def is_usage_error(error: BaseException) -> bool:
    """Returns whether Hydra or OmegaConf refused the command line, with an error of theirs or by failing on it."""
    return isinstance(error, (HydraException, OmegaConfBaseException)) or (
        not isinstance(error, (KrillError, OSError)) and _get_raising_module(error) in ("hydra", "omegaconf")
    )


def _is_variable_that_hydra_copies(error: KeyError) -> bool:
    """Returns whether Hydra's loader looked `error` up in os.environ, for hydra.job.env_copy."""
    modules = [frame.f_globals.get("__name__") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return modules[-2:] == ["hydra._internal.config_loader_impl", "os"]


def _get_raising_module(error: BaseException) -> str:
    """Returns the package whose code raised `error`."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]
