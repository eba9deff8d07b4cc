"""A sweep: all points are validated before the first starts; a table, best first, ends it."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra.plugins.sweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from krill import atomic, errors
from krill.cli.argv import quote_override, to_unresolved_list
from krill.errors import UsageError
from krill.launch import job_files
from krill.launch.job_files import ValidatedInvocation
from krill.runs import table
from krill.runs.find import list_point_folders, read_sweep
from krill.runs.record import now
from krill.runs.run_state import ACTIVE_STATES
from krill.runs.summary import summarize_sweep
from krill.runs.table import RunRow
from krill.sweep.composer import Composer, PointErrors, format_point_errors
from krill.sweep.search import SampledSearch, Search, build_search

log = logging.getLogger("krill")


@dataclass
class Sweep:
    """The sweep that this process runs."""

    folder: Path
    command: str
    dry_run: bool
    start: str
    points: list[ValidatedInvocation] = field(default_factory=list)
    """All so far, each folder once."""
    batch: list[ValidatedInvocation] = field(default_factory=list)
    """Those that are for the launcher now."""
    failures: dict[Path, str] = field(default_factory=dict)
    """Of points that could not say themselves how they ended."""
    has_invalid_points: bool = False
    """Whether a search came to points that could not be started."""

    def set_batch(self, batch: Sequence[ValidatedInvocation]) -> None:
        """Make these the batch. Points that are to make the same thing are one point, but for a dry run on this
        machine, which tells what each would cost."""
        first: dict[Path | None, ValidatedInvocation] = {}
        for point in batch:
            first.setdefault(point.folder, point)
        costs = self.dry_run and not any(point.invocation.is_for_slurm for point in batch)
        self.batch = list(batch if costs else first.values())
        known = {point.folder for point in self.points}
        self.points += [point for point in self.batch if point.folder not in known]
        if same := len(batch) - len(self.batch):
            log.info("sweep: %d of them would make what another one makes, and are left out", same)

    def record_invalid_points(self, why: str) -> None:
        """Say what cannot be started, and let that be no success."""
        log.error("%s", why)
        self.has_invalid_points = True

    def build_rows(self) -> list[RunRow]:
        """A row for each point so far, the best first."""
        folders = [point.folder for point in self.points if point.folder]
        return table.sort_best_first(table.read_rows(folders, self.failures))


_active_sweeps: list[Sweep] = []


def has_active_sweep() -> bool:
    """Whether this process began a sweep."""
    return bool(_active_sweeps)


def get_active_sweep() -> Sweep:
    """The sweep of this process."""
    return _active_sweeps[-1]


class Sweeper(hydra.plugins.sweeper.Sweeper):
    """As Hydra's basic sweeper, but that no point starts where one is wrong, that nothing is written before, and that
    a search may choose the points."""

    def __init__(self, max_batch_size: int | None = None, params: dict[str, str] | None = None):
        """`params`: what is swept without being typed, as in Hydra's; all points of a grid are one batch."""
        self.params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """What Hydra hands over."""
        self.config: DictConfig = config
        self.hydra_context: HydraContext = hydra_context
        self.task_function: TaskFunction = task_function

    def sweep(self, arguments: list[str]) -> Any:
        """Compose and validate the points, hand them to the launcher; again while a search asks for more.

        Raises UsageError that tells all that is wrong in any of the first.
        """
        loader, folder = self.hydra_context.config_loader, Path(self.config.hydra.sweep.dir)
        words = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        typed = OverridesParser.create(loader).parse_overrides(words)
        search = build_search(self.config.sweep, self.config.seed, typed)
        with read_write(self.config), open_dict(self.config):
            # Or a swept name would move single points elsewhere.
            self.config.hydra.overrides.hydra.append(quote_override(f"hydra.sweep.dir={folder}"))
        composer = Composer(loader, self.config, folder)
        points, wrong = _compose_first_batch(search, composer, folder)
        with read_write(self.config), open_dict(self.config):
            # That of the points: hardware= may be swept, and it is what chooses one.
            self.config.hydra.launcher = next(point.invocation.hydra.launcher for point in points if point)
        sweep = Sweep(folder, composer.command, composer.dry_run, now())
        _active_sweeps.append(sweep)
        log.info("sweep: %s%s", search.describe(len(points)), "" if sweep.dry_run else f" in {folder}")
        try:
            results = self._run_batch(sweep, search, arguments, points, wrong)
        except UsageError:  # no point has begun
            _active_sweeps.pop()
            raise
        while asked := _ask_next_batch(search, sweep, points):
            points, wrong = composer.compose_points(asked)
            try:
                results += self._run_batch(sweep, search, arguments, points, wrong)
            except UsageError as error:
                sweep.record_invalid_points(str(error))
                break
        for result in results:
            _ = result.return_value  # raises what a point of Hydra's own launchers raised
        return [results]

    def _run_batch(
        self, sweep: Sweep, search: Search, arguments: Sequence[str], points: Sequence[ValidatedInvocation | None], wrong: PointErrors
    ) -> list[JobReturn]:  # fmt: skip
        """Take these points into the sweep, write that down, and hand them to the launcher."""
        if wrong:
            sweep.record_invalid_points(format_point_errors(wrong))
        sweep.set_batch([point for point in points if point])
        if not sweep.dry_run:
            sweep.folder.mkdir(parents=True, exist_ok=True)
            OmegaConf.save(self.config, sweep.folder / "multirun.yaml")
            _write_sweep_json(self.config, sweep, search, arguments)
        if not sweep.batch:
            return []
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self.hydra_context, task_function=self.task_function, config=self.config
        )
        overrides = [point.invocation.overrides for point in sweep.batch]
        return list(launcher.launch(overrides, initial_job_idx=len(sweep.points) - len(sweep.batch)))


def _restore_search(search: Search, composer: Composer, folder: Path) -> bool:
    """Let a search go on from the points that it tried before: it is the same where the first has the same folder."""
    tried = read_sweep(folder).get("tried")
    if not isinstance(search, SampledSearch) or not isinstance(tried, list) or not tried:
        return False
    [point], _ = composer.compose_points([[*search.fixed_overrides, *tried[0]]])
    if point is None or list_point_folders(folder)[:1] != [point.folder]:
        return False
    search.restore_history(tried)
    return True


def _compose_first_batch(
    search: Search, composer: Composer, folder: Path
) -> tuple[list[ValidatedInvocation | None], PointErrors]:
    """The points that come first, and what is wrong with those of an earlier search, which were left out then, too.

    Raises UsageError for all that is wrong in any other, or at the ends of the space.
    """
    goes_on = _restore_search(search, composer, folder)
    asked = search.ask(1)
    points, wrong = composer.compose_points(asked)
    _, at_ends = composer.compose_points(search.boundary_points())
    if at_ends or (wrong and not goes_on):
        raise UsageError(format_point_errors(at_ends | wrong, len(points)))
    valid = [point for point in points if point]
    if len({point.invocation.hydra.launcher._target_ for point in valid}) > 1:
        raise UsageError("some points are for SLURM and some for this machine: give a command for each")
    if search.is_adaptive:
        _count_parallel_points(valid[0])
    return points, wrong


def _count_parallel_points(point: ValidatedInvocation) -> int:
    """How many points of a search that learns run at the same time. Raises UsageError where it cannot learn."""
    settings = point.config.sweep
    if point.invocation.command != "train":
        raise UsageError(
            f"sweep.search={settings.search} looks for a low validation loss, which only krill-train has: "
            "write sweep.search=random"
        )
    if point.config.detach:
        raise UsageError(
            f"detach=true leaves before there is anything for sweep.search={settings.search} to learn from: "
            "write sweep.search=random, or leave detach=true out"
        )
    if point.invocation.is_for_slurm and settings.max_parallel == "auto":
        raise UsageError(
            f"sweep.search={settings.search} on SLURM: say with sweep.max_parallel=4 how many jobs run at once; the next "
            "learn from them"
        )
    return len(job_files.build_slots([point]))


def _ask_next_batch(
    search: Search, sweep: Sweep, points: Sequence[ValidatedInvocation | None]
) -> list[list[str]]:
    """What comes next, now that these have ended; nothing when that was all."""
    if sweep.dry_run:
        return []
    rows = sweep.build_rows()
    known = {Path(row.folder): row for row in rows}
    ended = [known[point.folder] if point and point.folder else None for point in points]
    search.tell([row.eval_loss if row and row.state == "finished" else None for row in ended])
    settings = sweep.points[0].config.sweep
    if settings.on_failure == "stop" and any(row is None or row.state != "finished" for row in ended):
        return []
    asked = search.ask(_count_parallel_points(sweep.points[0]) if search.is_adaptive else 1)
    if asked:
        log.info("sweep: %s", summarize_sweep(rows))
    return asked


def _write_sweep_json(config: DictConfig, sweep: Sweep, search: Search, arguments: Sequence[str]) -> None:
    """Write sweep.json: what krill-runs knows the sweep by, points that have not begun among it."""
    value = {
        "command": sweep.command,
        "typed": to_unresolved_list(OmegaConf.create(list(arguments))),
        "launcher": config.hydra.runtime.choices.get("hydra/launcher"),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "start": sweep.start,
        "points": [
            {"folder": point.folder.name, "overrides": point.invocation.overrides}
            for point in sweep.points
            if point.folder
        ],
        "tried": search.history,
    }
    atomic.write_json(sweep.folder / "sweep.json", value)


def finish_sweep(failed: bool) -> int:
    """Print the table, write it, print the sweep's folder; 3 when a point failed.

    `failed`: whether Hydra told of a failure; a dry run leaves no other trace of it.
    """
    sweep = _active_sweeps.pop()
    if sweep.dry_run:
        shutil.rmtree(sweep.folder, ignore_errors=True)
        return errors.SWEEP_FAILED if failed else errors.DONE
    rows = sweep.build_rows()
    table.write_csv(rows, sweep.folder)
    table.print_table(rows, sys.stderr)
    print(sweep.folder)
    good = {"finished", *(ACTIVE_STATES if sweep.points[0].config.detach else ())}
    bad = sweep.has_invalid_points or any(row.state not in good for row in rows)
    return errors.SWEEP_FAILED if bad else errors.DONE
