"""krill's sweeper for Hydra: it validates all points before the first starts, and ends with a table, best first."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import hydra.plugins.sweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import InterpolationToMissingValueError

from krill import atomic
from krill.checksum import write_checksummed_json
from krill.config.overrides import expand_float_range, format_text_override, to_unresolved_list
from krill.config.paths import quote_path, relative_path
from krill.config.resolvers import get_dry_run_folder, get_sweep_folder
from krill.config.secrets import mask_config, mask_secrets
from krill.errors import DONE, SWEEP_FAILED, UsageError, get_first_line
from krill.launch import job_files
from krill.launch.job_files import Point
from krill.runs import table
from krill.runs.find import list_point_folders, read_sweep
from krill.runs.record import now
from krill.runs.resolve import BEST
from krill.runs.run_state import ACTIVE_STATES
from krill.runs.summary import summarize_sweep
from krill.runs.swept_edge import find_swept_edge
from krill.runs.table import RunRow
from krill.sweep.composer import Composer, PointErrors, format_point_errors
from krill.sweep.dry_run import print_total_cost
from krill.sweep.evaluation_report import prints_json, report_comparison
from krill.sweep.launchers import SweepLauncher
from krill.sweep.search import SampledSearch, Search, build_search
from krill.sweep.session import Session, Sweep, run_composed_point, run_point

log = logging.getLogger("krill")


class Sweeper(hydra.plugins.sweeper.Sweeper):
    """Like Hydra's basic sweeper, but no point starts and nothing is written while any point is invalid, and a search
    may choose the points."""

    def __init__(self, max_batch_size: int | None = None, params: dict[str, str] | None = None):
        """`params`: key → values to sweep, added to the overrides, as in Hydra's basic sweeper. `max_batch_size`:
        ignored; all points of a grid are one batch."""
        self.params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Stores what Hydra passes. `task_function`: the Session of this command line."""
        assert isinstance(task_function, Session)
        self.config: DictConfig = config
        self.hydra_context: HydraContext = hydra_context
        self.session = task_function

    def sweep(self, arguments: list[str]) -> Any:
        """Composes and validates the points, hands them to the launcher; repeats while a search asks for more.

        Raises UsageError that lists everything wrong in any of the first points.
        """
        loader, folder = self.hydra_context.config_loader, _resolve_sweep_folder(self.config)
        parser = OverridesParser.create(loader)
        texts = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        overrides = parser.parse_overrides(list(map(expand_float_range, parser.parse_overrides(texts))))
        search = build_search(self.config.sweep, self.config.get("seed"), overrides)
        with read_write(self.config), open_dict(self.config):
            # A swept name must not move single points to another folder.
            self.config.hydra.overrides.hydra.append(format_text_override("hydra.sweep.dir", str(folder)))
        if self.config.dry_run:  # Hydra's folder is a temporary one
            folder = Path(get_sweep_folder(self.config.output, self.config.name))
        composer = Composer(loader, self.config, folder)
        points, errors = _compose_first_batch(search, composer, folder)
        with read_write(self.config), open_dict(self.config):
            # The launcher of the points: hardware= may be swept, and it chooses one.
            self.config.hydra.launcher = next(
                point.invocation.composition.hydra.launcher for point in points if point
            )
        sweep = Sweep(folder, composer.command, composer.dry_run, now())
        log.info(
            "sweep       %s%s",
            search.describe(len(points)),
            "" if sweep.dry_run else f" in {relative_path(folder)}",
        )
        self.session.sweep = sweep
        try:
            with atomic.name_folder_in_errors(folder):
                results = self._run_batches(sweep, search, composer, arguments, points, errors)
        finally:
            sweep.close()
        for result in results:
            _ = result.return_value  # raises the error of a point of Hydra's own launchers
        return [results]

    def _run_batches(
        self, sweep: Sweep, search: Search, composer: Composer, arguments: Sequence[str],
        points: Sequence[Point | None], errors: PointErrors,
    ) -> list[JobReturn]:  # fmt: skip
        """Runs the first points, and those that the search asks for next."""
        try:
            results = self._run_batch(sweep, search, arguments, points, errors)
        except UsageError:  # no point has started
            self.session.sweep = None
            raise
        while proposed := _ask_next_batch(search, sweep, points):
            points, errors = composer.compose_points(proposed)
            try:
                results += self._run_batch(sweep, search, arguments, points, errors)
            except UsageError as error:
                sweep.record_invalid_points(str(error))
                break
        return results

    def _run_batch(
        self, sweep: Sweep, search: Search, arguments: Sequence[str],
        points: Sequence[Point | None], errors: PointErrors,
    ) -> list[JobReturn]:  # fmt: skip
        """Adds these points to the sweep, records them, and hands them to the launcher."""
        if errors:
            sweep.record_invalid_points(format_point_errors(errors))
        sweep.set_batch([point for point in points if point])
        if not sweep.dry_run:
            atomic.create_folder(sweep.folder)
            OmegaConf.save(mask_config(self.config), sweep.folder / "multirun.yaml")
            _write_sweep_json(self.config, sweep, search, arguments)
        if not sweep.batch:
            return []
        run_task = self.session.run_task
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self.hydra_context,
            task_function=partial(run_composed_point, run_task),
            config=self.config,
        )
        if isinstance(launcher, SweepLauncher):
            launcher.launch_batch(sweep, partial(run_point, run_task))
            return []
        overrides = [point.invocation.overrides for point in sweep.batch]
        return list(launcher.launch(overrides, initial_job_idx=len(sweep.points) - len(sweep.batch)))


def _resolve_sweep_folder(config: DictConfig) -> Path:
    """Returns the folder of the sweep. Raises UsageError if its name follows a key that only the points set."""
    try:
        return Path(config.hydra.sweep.dir)
    except InterpolationToMissingValueError as error:
        key = get_first_line(error).rpartition(": ")[2]
        raise UsageError(
            f"the name of the sweep follows {key}, which differs between its points; set name=NAME"
        ) from error


def _restore_search(search: Search, composer: Composer, folder: Path) -> bool:
    """Restores the history of the same search from sweep.json; it is the same if its first point has the same folder.

    Returns whether there was one.
    """
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
) -> tuple[list[Point | None], PointErrors]:
    """Composes the first points. Returns them, and the errors of points that an earlier search left out already.

    Raises UsageError for everything wrong in any other point, or at the bounds of the search space.
    """
    is_restored = _restore_search(search, composer, folder)
    points, errors = composer.compose_points(search.ask(1))
    _, boundary_errors = composer.compose_points(search.list_boundary_points())
    if boundary_errors or (errors and not is_restored):
        raise UsageError(format_point_errors(boundary_errors | errors, len(points)))
    valid = [point for point in points if point]
    has_one_launcher = len({point.invocation.composition.launcher for point in valid}) <= 1
    if not has_one_launcher and composer.command != "plan":
        raise UsageError("some points are for SLURM and some for this machine: run a command for each")
    if search.is_adaptive:
        _check_adaptive(valid[0])
    return points, errors


def _check_adaptive(point: Point) -> None:
    """Raises UsageError when a search cannot learn from the results of such points."""
    settings = point.config.sweep
    if point.invocation.command != "train":
        raise UsageError(
            f"sweep.search={settings.search} minimizes the validation loss, which only krill-train has: "
            "use sweep.search=random"
        )
    if point.config.detach:
        raise UsageError(
            f"detach=true ends the command before sweep.search={settings.search} has results to learn from: "
            "use sweep.search=random, or leave detach=true out"
        )
    if point.invocation.is_for_slurm and settings.max_parallel == "auto":
        raise UsageError(
            f"sweep.search={settings.search} on SLURM needs the number of jobs that run at once, from which the next "
            "ones learn: set it, as in sweep.max_parallel=4"
        )
    job_files.build_slots([point])  # raises UsageError if there are fewer GPUs than the slots need


def _ask_next_batch(search: Search, sweep: Sweep, points: Sequence[Point | None]) -> list[list[str]]:
    """Reports the losses of `points` to the search. Returns the overrides of the next points, none at its end."""
    if sweep.dry_run:
        return []
    rows = sweep.build_rows()
    by_folder = {Path(row.folder): row for row in rows}
    results = [by_folder[point.folder] if point else None for point in points]
    if search.is_adaptive and not _is_comparable(rows):
        sweep.record_invalid_points(
            "the points have different held-out sets or tokenizers, so their validation losses are not comparable "
            "and there is nothing to learn from: use sweep.search=random, or sweep keys that do not change the data"
        )
        return []
    search.tell([row.eval_loss if row and row.state == "finished" else None for row in results])
    settings = sweep.points[0].config.sweep
    if settings.on_failure == "stop" and any(row is None or row.state != "finished" for row in results):
        return []
    proposed = search.ask(len(job_files.build_slots(sweep.points[:1])) if search.is_adaptive else 1)
    if proposed:
        log.info("sweep       %s", summarize_sweep(rows))
    return proposed


def _is_comparable(rows: Sequence[RunRow]) -> bool:
    """Returns whether all validation losses are of the same text and the same tokenizer."""
    tokenizers = {row.tokenizer for row in rows if row.eval_loss is not None}
    return table.count_validation_sets(rows) <= 1 and len(tokenizers) <= 1


def _write_sweep_json(config: DictConfig, sweep: Sweep, search: Search, arguments: Sequence[str]) -> None:
    """Writes sweep.json, which lists all points for krill-runs, also those that have not started."""
    value = {
        "command": sweep.command,
        "typed": to_unresolved_list(OmegaConf.create(list(arguments))),
        "launcher": config.hydra.runtime.choices.get("hydra/launcher"),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "start": sweep.start,
        "points": [
            {"folder": point.folder.name, "overrides": point.invocation.overrides} for point in sweep.points
        ],
        "tried": search.history,
    }
    write_checksummed_json(sweep.folder / "sweep.json", mask_secrets(value))


def finish_sweep(sweep: Sweep, has_error: bool) -> int:
    """Prints the table, writes it to table.csv and prints the sweep's folder. Returns the exit code.

    `has_error`: whether Hydra reported an error; it decides the exit code of a dry run, which records nothing.
    """
    if sweep.dry_run:
        shutil.rmtree(get_dry_run_folder(), ignore_errors=True)
        print_total_cost(sweep)
        return SWEEP_FAILED if has_error else DONE
    rows = sweep.build_rows()
    if sweep.command == "evaluate":
        report_comparison(sweep, rows)
    else:
        table.print_table(rows, sys.stderr)
    if sweep.command == "train" and any(row.eval_loss is not None for row in rows):
        is_one = table.count_validation_sets(rows) == 1
        edge = find_swept_edge(rows, sweep.folder, read_sweep(sweep.folder))
        if edge is not None:
            log.info("edge        %s", edge.describe())
        log.info("next        krill-infer %s", quote_path(sweep.folder) + BEST if is_one else rows[0].folder)
        if edge is not None and edge.next:
            log.info("            %s", edge.next)
    with atomic.name_folder_in_errors(sweep.folder):
        table.write_csv(rows, sweep.folder)
    if not prints_json(sweep):
        print(sweep.folder)
    good = {"finished", *(ACTIVE_STATES if sweep.points[0].config.detach else ())}
    is_good = not sweep.has_invalid_points and all(row.state in good for row in rows)
    return DONE if is_good else SWEEP_FAILED
