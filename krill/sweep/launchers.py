"""krill's launchers for Hydra: the points of a sweep as processes on this machine, or as SLURM jobs."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from krill.errors import UsageError
from krill.launch import job_files
from krill.launch.job_files import Point
from krill.launch.preload import PRELOADED_MODULES, PreloadedServer
from krill.signals import describe_exit
from krill.sweep.dry_run import print_plans, print_points
from krill.sweep.session import Sweep

MIN_FREE_BYTES = 2**20
"""With less free space than this, a point that could not record its error probably found the disk full."""
log = logging.getLogger("krill")


class SweepLauncher(Launcher):
    """A launcher that gets the validated points of krill's sweeper, not their overrides."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Does nothing: Hydra requires the method, and the points hold all of it."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Raises UsageError: only other sweepers call it."""
        raise UsageError("this hydra/launcher needs the sweeper of krill: leave hydra.sweeper out")

    @abstractmethod
    def launch_batch(self, sweep: Sweep, run_point: Callable[[Any], Any]) -> None:
        """Runs the batch of `sweep` and waits for it; points that are finished are skipped.

        `run_point`: runs a point's invocation in this process.
        """


class PoolLauncher(SweepLauncher):
    """Runs the points of a sweep on this machine, each in a process of its own."""

    def launch_batch(self, sweep: Sweep, run_point: Callable[[Any], Any]) -> None:
        """Runs the batch; a dry run prints the points in this process."""
        if sweep.command == "plan":
            print_plans(sweep.batch, run_point)
        elif sweep.dry_run:
            print_points(sweep.batch, run_point)
        elif points := job_files.skip_finished(sweep.batch):
            _run_in_pool(sweep, points)


class SlurmLauncher(SweepLauncher):
    """Submits the points of a sweep as SLURM jobs."""

    def __init__(self, **options: Any) -> None:
        """`options`: the keys of hydra.launcher, which krill.launch.submit reads from the configuration."""

    def launch_batch(self, sweep: Sweep, run_point: Callable[[Any], Any]) -> None:
        """Submits the batch; skips points that are queued too, and does not wait with detach=true."""
        if sweep.command == "plan":
            print_plans(sweep.batch, run_point)
            return
        from krill.launch import submit

        submit.submit_points(sweep.folder, sweep.batch, sweep.dry_run)


def _run_in_pool(sweep: Sweep, points: list[Point]) -> None:
    from krill.launch import pool

    slots = job_files.build_slots(points)
    folder = job_files.create_submission_folder(sweep.folder / ".jobs")
    job_files.write_job_files(folder, [point.to_job(is_on_slurm=False) for point in points])
    labels = job_files.label_points(points)
    is_parallel = len(slots) > 1

    def on_start(index: int) -> None:
        log.info("point %d of %d: %s", index + 1, len(points), labels[index])

    def on_exit(index: int, code: int) -> bool:
        log_file = folder / f"{index}.log" if is_parallel else None
        if is_parallel:
            _print_file(folder / f"{index}.out")
        if code:
            _record_failure(sweep, points[index], describe_exit(code), log_file)
        log.info("%s: %s", labels[index], describe_exit(code) if code else "finished")
        return not code or points[0].config.sweep.on_failure == "continue"

    pool.run_commands(
        [
            [sys.executable, "-m", job_files.JOB_MODULE, str(folder), str(index)]
            for index in range(len(points))
        ],
        slots,
        output_stems=[folder / str(index) for index in range(len(points))] if is_parallel else None,
        on_start=on_start,
        on_exit=on_exit,
        spawn=_get_server(sweep, points, slots[0]).spawn,
    )


def _get_server(sweep: Sweep, points: Sequence[Point], environment: Mapping[str, str]) -> PreloadedServer:
    """Returns the fork server of the sweep, started by its first batch.

    `environment`: of a slot. Only its OpenMP variables are read during imports, and those are the same in all slots.
    """
    if sweep.server is None:
        modules = PRELOADED_MODULES.get(sweep.command, ())
        has_several_points = len(points) > 1 or points[0].config.sweep.search != "grid"
        is_repaid = has_several_points or PreloadedServer.get_running().address is not None
        can_fork = None if is_repaid and modules else False
        sweep.server = PreloadedServer.start(modules, os.environ | environment, can_fork)
    return sweep.server


def _record_failure(sweep: Sweep, point: Point, reason: str, log_file: Path | None) -> None:
    """Records why a point ended that could not record it itself."""
    from krill.runs.record import read_status

    status = read_status(point.folder)
    if status is None or status["state"] in ("running", "queued"):
        if shutil.disk_usage(sweep.folder).free < MIN_FREE_BYTES:
            reason += f"; no space left in {sweep.folder}: free some and run the same command again"
        sweep.failures[point.folder] = f"{reason}; {log_file}" if log_file and status is None else reason


def _print_file(file: Path) -> None:
    text = file.read_text(encoding="utf-8", errors="replace")
    if text:
        print(text, end="", flush=True)
