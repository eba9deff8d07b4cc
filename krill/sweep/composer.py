"""The points of a sweep: what was typed for each, composed and validated, every mistake told once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from krill.config.commands import COMMAND_SCHEMAS
from krill.errors import UsageError
from krill.launch import identity
from krill.launch.invocation import Invocation
from krill.launch.job_files import ValidatedInvocation
from krill.sources.hash_cache import read_only_hash_cache

PointErrors = dict[str, list[str]]
"""What is wrong → what was typed for the points in which it is."""


class Composer:
    """Makes the points of one sweep; text that they share is looked at once."""

    def __init__(self, loader: Any, config: DictConfig, folder: Path):
        """`loader`: Hydra's; `config`: what it composed of that which is typed for all points."""
        self.command = str(config.hydra.job.config_name)
        # As where Hydra was told to put the sweep, whatever single points say.
        self.dry_run = bool(config.dry_run)
        self._loader, self._config, self._folder = loader, config, folder
        self._identify = identity.IdentityCache(self.command)

    def compose_points(
        self, every: Sequence[Sequence[str]]
    ) -> tuple[list[ValidatedInvocation | None], PointErrors]:
        """The point of each of these lists of overrides, None where it is not valid, and what is wrong."""
        found: list[ValidatedInvocation | None] = []
        wrong: PointErrors = {}
        for overrides in every:
            try:
                found.append(self._compose_point(overrides))
            except UsageError as error:
                found.append(None)
                for line in str(error).splitlines():
                    wrong.setdefault(line, []).append(" ".join(overrides))
        return found, wrong

    def _compose_point(self, overrides: Sequence[str]) -> ValidatedInvocation:
        composed = self._loader.load_sweep_config(self._config, list(overrides))
        hydra = composed.hydra
        with open_dict(composed):
            del composed["hydra"]
        call = Invocation(OmegaConf.create(composed), hydra, self._folder)
        config = call.validate(COMMAND_SCHEMAS[self.command])
        with read_only_hash_cache() if self.dry_run else nullcontext():
            identity = self._identify(config)
        return ValidatedInvocation(call, config, self._folder / identity[:8], identity)


def format_point_errors(wrong: PointErrors, every: int | None = None) -> str:
    """A line for each mistake; one that is in all of `every` points names none."""
    return "\n".join(
        fault if len(found) == every else f"{fault}  (in: {'; '.join(found)})"
        for fault, found in wrong.items()
    )
