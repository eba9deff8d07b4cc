"""The points of a sweep: composed and validated together, so that every error is reported once."""

from __future__ import annotations

import gc
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import omegaconf.base
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, open_dict

from krill.config.commands import COMMAND_SCHEMAS
from krill.config.schema import Section, TrainConfig
from krill.config.secrets import mask_text
from krill.errors import UsageError
from krill.launch.identity import InputsCache, compute_identity, raise_if_task
from krill.launch.invocation import Composition, SweepPoint
from krill.launch.job_files import Point
from krill.resources import paused_garbage_collection

ConfigT = TypeVar("ConfigT", bound=Section)
PointErrors = dict[str, list[str]]
"""Error → the overrides of each point that has it."""

MAX_POINTS_PER_ERROR = 10
"""The number of points that an error lists."""

POINTS_PER_COLLECTION = 100
"""Points after which the garbage of their composition is freed: each leaves about 0.2 MB in reference cycles."""


@dataclass(frozen=True)
class _Base:
    """What Hydra composes of some choices of config groups."""

    config: bytes
    """The configuration without the node hydra, pickled: to unpickle a copy takes a fifth of the time of deepcopy."""
    complete: bytes
    """The configuration with the node hydra, pickled."""
    choices: dict[str, str]
    launcher: str

    @classmethod
    def from_config(cls, composed: DictConfig) -> _Base:
        """Splits what Hydra composed; `composed` loses the node hydra."""
        complete = pickle.dumps(composed)
        composition = Composition(None, composed.hydra)
        choices, launcher = composition.choices, composition.launcher
        with open_dict(composed):
            del composed["hydra"]
        return cls(pickle.dumps(composed), complete, choices, launcher)


class _PointComposition(Composition):
    """What Hydra composes for a point. It is composed whenever it is needed: kept, it would take 0.4 MB per point."""

    def __init__(self, composer: Composer, overrides: Sequence[str]):
        self._composer, self._overrides = composer, list(overrides)
        base = composer.get_base(overrides)
        self.command, self.choices, self.launcher = composer.command, base.choices, base.launcher
        self.overrides = [str(item.input_line) for item in composer.parse_task_overrides(overrides)]

    @property
    def config(self) -> DictConfig:
        return self._composer.compose_config(self._overrides)

    @property
    def hydra(self) -> DictConfig:
        return self._composer.compose_hydra(self._overrides)


class Composer:
    """Composes the points of one sweep; text that several of them share is opened once."""

    def __init__(self, loader: Any, config: DictConfig, folder: Path):
        """`loader`: Hydra's config loader; `config`: composed from the overrides that all points share; `folder`: of
        the sweep."""
        self.command = str(config.hydra.job.config_name)
        # The value that decided the sweep's folder, whatever single points override.
        self.dry_run = bool(config.dry_run)
        self._loader, self._config, self._folder = loader, config, folder
        self._inputs = InputsCache()
        self._parser = OverridesParser.create(loader)
        self._parsed: dict[str, Override] = {}
        self._is_group: dict[str, bool] = {}
        self._bases: dict[tuple[str, ...], _Base] = {}
        """Overrides of config groups → the configuration that Hydra composes of them."""
        self._sections: dict[tuple[str, type, str], Section] = {}
        """Sections of the points so far, each once."""

    def compose_points(
        self, overrides_of_points: Sequence[Sequence[str]]
    ) -> tuple[list[Point | None], PointErrors]:
        """Returns a point for each list of overrides, None if it is not valid, and all errors."""
        points: list[Point | None] = []
        errors: PointErrors = {}
        gc.collect()  # garbage, such as the model of an earlier point, would be frozen
        with paused_garbage_collection(), _parse_interpolations_once():
            for index, overrides in enumerate(overrides_of_points, start=1):
                try:
                    points.append(self._compose_point(overrides))
                except UsageError as error:
                    points.append(None)
                    for line in str(error).splitlines():
                        errors.setdefault(line, []).append(" ".join(overrides))
                if index % POINTS_PER_COLLECTION == 0:
                    gc.collect(0)
            gc.collect(0)
            gc.freeze()
        return points, errors

    def _compose_point(self, overrides: Sequence[str]) -> Point:
        invocation = SweepPoint(_PointComposition(self, overrides), self._folder)
        config = self._share_sections(invocation.validate(COMMAND_SCHEMAS[self.command]))
        invocation.config = config
        if self.command == "train":
            assert isinstance(config, TrainConfig)
            raise_if_task(config)
        invocation.inputs = self._inputs.open(config)
        identity = compute_identity(self.command, config, invocation.inputs)
        invocation.identity = identity
        return Point(invocation, config, invocation.resolve_folder(None, identity), identity)

    def _share_sections(self, config: ConfigT) -> ConfigT:
        """Returns `config` with the sections of earlier points where they are equal."""
        sections = {
            key: self._sections.setdefault((key, type(value), value.model_dump_json()), value)
            for key in type(config).model_fields
            if isinstance(value := getattr(config, key), Section)
        }
        return config.model_copy(update=sections)

    def get_base(self, overrides: Sequence[str]) -> _Base:
        """Returns the configuration of the config groups that `overrides` choose; it is composed once per choice."""
        parsed = map(self._parse_override, overrides)
        groups = tuple(str(item.input_line) for item in parsed if self._is_composed_by_hydra(item))
        if groups not in self._bases:
            self._bases[groups] = _Base.from_config(
                self._loader.load_sweep_config(self._config, list(groups))
            )
        return self._bases[groups]

    def compose_config(self, overrides: Sequence[str]) -> DictConfig:
        """Returns what Hydra's load_sweep_config returns, without the node hydra.

        Values are set in a copy of the base by Hydra's own function, which takes a twentieth of the time.
        """
        config: DictConfig = pickle.loads(self.get_base(overrides).config)
        return self._set_values(config, overrides)

    def compose_hydra(self, overrides: Sequence[str]) -> DictConfig:
        """Returns the node hydra of what Hydra's load_sweep_config returns."""
        composed = self._set_values(pickle.loads(self.get_base(overrides).complete), overrides)
        parsed = self.parse_task_overrides(overrides)
        composed.hydra.overrides.task = [override.input_line for override in parsed]
        names = composed.hydra.job.config.override_dirname
        composed.hydra.job.override_dirname = get_overrides_dirname(
            parsed, kv_sep=names.kv_sep, item_sep=names.item_sep, exclude_keys=names.exclude_keys
        )
        return composed.hydra

    def parse_task_overrides(self, overrides: Sequence[str]) -> list[Override]:
        """Returns the overrides of the configuration without the node hydra."""
        parsed = map(self._parse_override, overrides)
        return [override for override in parsed if not override.is_hydra_override()]

    def _set_values(self, config: DictConfig, overrides: Sequence[str]) -> DictConfig:
        parsed = map(self._parse_override, overrides)
        values = [override for override in parsed if not self._is_composed_by_hydra(override)]
        ConfigLoaderImpl._apply_overrides_to_config(values, config)
        return config

    def _parse_override(self, override: str) -> Override:
        """Parses an override once for all points that have it."""
        if override not in self._parsed:
            self._parsed[override] = self._parser.parse_override(override)
        return self._parsed[override]

    def _is_composed_by_hydra(self, override: Override) -> bool:
        """Returns whether an override chooses the option of a config group, or sets a key of the node hydra."""
        key = override.key_or_group
        if key not in self._is_group:
            self._is_group[key] = self._loader.repository.group_exists(key)
        return override.is_hydra_override() or (
            self._is_group[key] and not isinstance(override.value(), dict)
        )


@contextmanager
def _parse_interpolations_once() -> Iterator[None]:
    """Parses each ${…} once for all points: OmegaConf parses it whenever it is read, half of the time of a point."""
    original = omegaconf.base.parse
    omegaconf.base.parse = lru_cache(maxsize=1024)(original)
    try:
        yield
    finally:
        omegaconf.base.parse = original


def format_point_errors(errors: PointErrors, num_points: int | None = None) -> str:
    """Returns a line for each error, with the points that have it unless all `num_points` do; without secrets."""
    return "\n".join(
        error if len(points) == num_points else f"{error}  (in: {_format_points(points)})"
        for error, points in errors.items()
    )


def _format_points(points: Sequence[str]) -> str:
    """Returns the overrides of some of `points`."""
    listed = [mask_text(point) for point in points[:MAX_POINTS_PER_ERROR]]
    num_more = len(points) - len(listed)
    return "; ".join([*listed, f"and {num_more:,} more points"] if num_more else listed)
