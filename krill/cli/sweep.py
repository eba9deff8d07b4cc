"""A sweep: all points are validated before the first starts; a table, best first, ends it."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra.plugins.sweeper
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from krill import atomic, errors
from krill.cli.argv import as_typed, quoted
from krill.cli.call import Call
from krill.cli.commands import SCHEMA
from krill.cli.jobs import Point
from krill.errors import UsageError

log = logging.getLogger("krill")


@dataclass
class Sweep:
    """The sweep that this process runs."""

    folder: Path
    command: str
    points: list[Point]
    dry_run: bool
    failures: dict[Path, str] = field(default_factory=dict)
    """Of points that could not say themselves how they ended."""

    def places(self) -> list[tuple[Path, Point]]:
        """Each point with its folder."""
        return [(point.folder, point) for point in self.points if point.folder is not None]


_current: list[Sweep] = []


def started() -> bool:
    """Whether this process began a sweep."""
    return bool(_current)


def current() -> Sweep:
    """The sweep of this process."""
    return _current[-1]


class Sweeper(hydra.plugins.sweeper.Sweeper):
    """As Hydra's basic sweeper, but that no point starts where one is wrong, and nothing is written before."""

    def __init__(self, max_batch_size: int | None = None, params: dict[str, str] | None = None):
        """`params`: what is swept without being typed, as in Hydra's; all points are one batch."""
        self.params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """What Hydra hands over."""
        self.config: DictConfig = config
        self.hydra_context: HydraContext = hydra_context
        self.task_function: TaskFunction = task_function

    def sweep(self, arguments: list[str]) -> Any:
        """Compose and validate every point, then hand all of them to the launcher.

        Raises UsageError that tells all that is wrong in any of them.
        """
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        every = parser.parse_overrides(
            [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        )
        points = [list(point) for point in BasicSweeper.split_arguments(every, None)[0]]
        folder = Path(self.config.hydra.sweep.dir)
        with read_write(self.config), open_dict(self.config):
            # Or a swept name would move single points elsewhere.
            self.config.hydra.overrides.hydra.append(quoted(f"hydra.sweep.dir={folder}"))
            _current.append(_begun(self.hydra_context.config_loader, self.config, folder, points))
            # That of the points: hardware= may be swept, and it is what chooses one.
            self.config.hydra.launcher = current().points[0].call.hydra.launcher
        if not current().dry_run:
            folder.mkdir(parents=True, exist_ok=True)
            OmegaConf.save(self.config, folder / "multirun.yaml")
            _record(self.config, current(), arguments)
        try:
            results = self._launcher().launch(points, initial_job_idx=0)
        except UsageError:  # no point has begun
            _current.pop()
            raise
        for result in results:
            _ = result.return_value  # raises what a point of Hydra's own launchers raised
        return [results]

    def _launcher(self) -> Launcher:
        return Plugins.instance().instantiate_launcher(
            hydra_context=self.hydra_context, task_function=self.task_function, config=self.config
        )


def _begun(loader: Any, config: DictConfig, folder: Path, every: list[list[str]]) -> Sweep:
    from krill.cli import places
    from krill.sources.digests import none_kept

    command = config.hydra.job.config_name
    wrong: dict[str, list[str]] = {}
    points = []
    dry_run = bool(config.dry_run)  # as where Hydra was told to put the sweep, whatever single points say
    identify = places.Identities(command)
    for overrides in every:
        try:
            call = _call(loader, config, folder, overrides)
            point = call.validated(SCHEMA[command])
            with none_kept() if dry_run else nullcontext():
                identity = identify(point)
            points.append(Point(call, point, folder / identity[:8], identity))
        except UsageError as error:
            for line in str(error).splitlines():
                wrong.setdefault(line, []).append(" ".join(overrides))
    if wrong:
        raise UsageError("\n".join(_where(fault, found, len(every)) for fault, found in wrong.items()))
    if len({point.call.hydra.launcher._target_ for point in points}) > 1:
        raise UsageError("some points are for SLURM and some for this machine: give a command for each")
    log.info("sweep: %d points%s", len(points), "" if dry_run else f" in {folder}")
    return Sweep(folder, command, points, dry_run)


def _call(loader: Any, config: DictConfig, folder: Path, overrides: list[str]) -> Call:
    composed = loader.load_sweep_config(config, overrides)
    hydra = composed.hydra
    with open_dict(composed):
        del composed["hydra"]
    return Call(OmegaConf.create(composed), hydra, folder)


def _where(fault: str, points: list[str], every: int) -> str:
    return fault if len(points) == every else f"{fault}  (in: {'; '.join(points)})"


def _record(config: DictConfig, sweep: Sweep, typed: Sequence[str]) -> None:
    """Write sweep.json: what krill-runs knows the sweep by, points that have not begun among it."""
    from krill.runs.record import now

    value = {
        "command": sweep.command,
        "typed": as_typed(OmegaConf.create(list(typed))),
        "launcher": config.hydra.runtime.choices.get("hydra/launcher"),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "start": now(),
        "points": [
            {"folder": place.name, "overrides": point.call.overrides} for place, point in sweep.places()
        ],
    }
    atomic.write_json(sweep.folder / "sweep.json", value)


def finish(failed: bool) -> int:
    """Print the table, write it, print the sweep's folder; 3 when a point failed.

    `failed`: whether Hydra told of a failure; a dry run leaves no other trace of it.
    """
    from krill.runs import table
    from krill.runs.standing import GOES_ON

    sweep = _current.pop()
    if sweep.dry_run:
        shutil.rmtree(sweep.folder, ignore_errors=True)
        return errors.SWEEP_FAILED if failed else errors.DONE
    rows = table.best_first(table.rows([folder for folder, _ in sweep.places()], sweep.failures))
    table.write(rows, sweep.folder)
    table.show(rows, sys.stderr)
    print(sweep.folder)
    good = {"finished", *(GOES_ON if sweep.points[0].config.detach else ())}
    return errors.SWEEP_FAILED if any(row.state not in good for row in rows) else errors.DONE
