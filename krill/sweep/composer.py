"""The points of a sweep: composed and validated together, so that every error is reported once."""

from __future__ import annotations

import gc
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, open_dict

from krill.config.commands import COMMAND_SCHEMAS
from krill.config.schema import TrainConfig
from krill.errors import UsageError
from krill.launch.identity import InputsCache, compute_identity, raise_if_task
from krill.launch.invocation import SweepPoint
from krill.launch.job_files import Point
from krill.resources import paused_garbage_collection

PointErrors = dict[str, list[str]]
"""Error → the overrides of each point that has it."""


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
        self._bases: dict[tuple[str, ...], bytes] = {}
        """Overrides of config groups → the configuration that Hydra composes of them, pickled."""

    def compose_points(
        self, overrides_of_points: Sequence[Sequence[str]]
    ) -> tuple[list[Point | None], PointErrors]:
        """Returns a point for each list of overrides, None if it is not valid, and all errors."""
        points: list[Point | None] = []
        errors: PointErrors = {}
        gc.collect()  # garbage, such as the model of an earlier point, would be frozen
        with paused_garbage_collection():
            for overrides in overrides_of_points:
                try:
                    points.append(self._compose_point(overrides))
                except UsageError as error:
                    points.append(None)
                    for line in str(error).splitlines():
                        errors.setdefault(line, []).append(" ".join(overrides))
            gc.freeze()
        return points, errors

    def _compose_point(self, overrides: Sequence[str]) -> Point:
        composed = self._compose_config(overrides)
        hydra = composed.hydra
        with open_dict(composed):
            del composed["hydra"]
        invocation = SweepPoint(composed, hydra, self._folder)
        config = invocation.validate(COMMAND_SCHEMAS[self.command])
        if self.command == "train":
            assert isinstance(config, TrainConfig)
            raise_if_task(config)
        invocation.inputs = self._inputs.open(config)
        identity = compute_identity(self.command, config, invocation.inputs)
        invocation.identity = identity
        return Point(invocation, config, invocation.resolve_folder(None, identity), identity)

    def _compose_config(self, overrides: Sequence[str]) -> DictConfig:
        """Returns what Hydra's load_sweep_config returns.

        Hydra composes the chosen groups once per choice; values are then set in a copy by Hydra's own function, which
        takes a twentieth of the time (to unpickle a copy takes a quarter of the time of deepcopy).
        """
        parsed = [self._parse_override(override) for override in overrides]
        if any(override.is_hydra_override() for override in parsed):
            return self._loader.load_sweep_config(self._config, list(overrides))
        values = [override for override in parsed if not self._is_group(override)]
        groups = tuple(str(override.input_line) for override in parsed if override not in values)
        if groups not in self._bases:
            self._bases[groups] = pickle.dumps(self._loader.load_sweep_config(self._config, list(groups)))
        composed: DictConfig = pickle.loads(self._bases[groups])
        ConfigLoaderImpl._apply_overrides_to_config(values, composed)
        composed.hydra.overrides.task = [override.input_line for override in parsed]
        names = composed.hydra.job.config.override_dirname
        composed.hydra.job.override_dirname = get_overrides_dirname(
            parsed, kv_sep=names.kv_sep, item_sep=names.item_sep, exclude_keys=names.exclude_keys
        )
        return composed

    def _parse_override(self, override: str) -> Override:
        """Parses an override once for all points that have it."""
        if override not in self._parsed:
            self._parsed[override] = self._parser.parse_override(override)
        return self._parsed[override]

    def _is_group(self, override: Override) -> bool:
        """Returns whether Hydra reads an override as the choice of a config group."""
        return self._loader.repository.group_exists(override.key_or_group) and not isinstance(
            override.value(), dict
        )


def format_point_errors(errors: PointErrors, num_points: int | None = None) -> str:
    """Returns a line for each error, with the points that have it unless all `num_points` do."""
    return "\n".join(
        error if len(points) == num_points else f"{error}  (in: {'; '.join(points)})"
        for error, points in errors.items()
    )
