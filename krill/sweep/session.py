"""The data of one command line that Hydra does not carry: its sweep, or the error of its single run."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krill.config.secrets import mask_text
from krill.errors import SignalInterrupt
from krill.launch.invocation import Invocation, SweepPoint, build_invocation

if TYPE_CHECKING:
    from krill.launch.job_files import Point
    from krill.launch.preload import PreloadedServer
    from krill.runs.table import RunRow

RunTask = Callable[[Invocation], Any]
"""Runs a command once; each command has one, named run_task."""

log = logging.getLogger("krill")


@dataclass
class Sweep:
    """The sweep that this process runs."""

    folder: Path
    command: str
    dry_run: bool
    start: str
    points: list[Point] = field(default_factory=list)
    """All points so far, each folder once."""
    batch: list[Point] = field(default_factory=list)
    """The points to launch next."""
    failures: dict[Path, str] = field(default_factory=dict)
    """Folder → error of the points that ended without recording one."""
    has_invalid_points: bool = False
    """Whether a search proposed points that are not valid."""
    server: PreloadedServer | None = None
    """The fork server of the points that run on this machine; it serves all batches."""

    def set_batch(self, batch: Sequence[Point]) -> None:
        """Sets the points to launch next. Points with the same result are one point, except in a dry run on this
        machine, which prints the cost of each."""
        first: dict[Path, Point] = {}
        for point in batch:
            first.setdefault(point.folder, point)
        prints_costs = self.dry_run and not any(point.invocation.is_for_slurm for point in batch)
        self.batch = list(batch if prints_costs else first.values())
        known = {point.folder for point in self.points}
        self.points += [point for point in self.batch if point.folder not in known]
        if duplicates := len(batch) - len(self.batch):
            log.info("sweep       %d duplicate points skipped", duplicates)

    def record_invalid_points(self, errors: str) -> None:
        """Logs the errors of points that cannot start; the sweep then counts as failed."""
        log.error("%s", errors)
        self.has_invalid_points = True

    def close(self) -> None:
        """Ends the fork server, if there is one."""
        if self.server is not None:
            self.server.close()

    def build_rows(self) -> list[RunRow]:
        """Returns a row for each point so far, the best first."""
        from krill.runs import table

        return table.sort_best_first(table.read_rows([point.folder for point in self.points], self.failures))


class Session:
    """The task function that Hydra gets for one command line. krill's Sweeper finds it there and sets `sweep`."""

    def __init__(self, run_task: RunTask):
        functools.update_wrapper(self, run_task)  # Hydra names the job after the module of its task function
        self.run_task = run_task
        self.sweep: Sweep | None = None
        self.error: Exception | None = None
        """The error of a single run, which Hydra would print if it were raised; or one that Hydra raised."""

    def __call__(self, composed: Any) -> Any:
        """Runs what Hydra composed: a single run, or a point of another sweeper than krill's."""
        invocation = build_invocation(composed)
        if isinstance(invocation, SweepPoint):
            return run_point(self.run_task, invocation)
        try:
            return self.run_task(invocation)
        except Exception as error:
            self.error = error
            return None


def run_composed_point(run_task: RunTask, composed: Any) -> Any:
    """Runs the point that one of Hydra's own launchers composed, in whatever process it starts."""
    invocation = build_invocation(composed)
    assert isinstance(invocation, SweepPoint)
    return run_point(run_task, invocation)


def run_point(run_task: RunTask, point: SweepPoint) -> Any:
    """Runs one point of a sweep; an error is logged with its overrides, a signal ends the process."""
    try:
        return run_task(point)
    except Exception as error:
        log.error("failed: %s: %s", mask_text(" ".join(point.overrides)), error)
        raise
    except SignalInterrupt as stop:
        log.error("%s: %s", mask_text(" ".join(point.overrides)), stop)
        raise SystemExit(stop.exit_code) from stop
