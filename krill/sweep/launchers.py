"""Hydra's launchers that krill adds: its configurations name them as hydra_plugins.krill.…"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from krill.launch import job_files
from krill.launch.job_files import ValidatedInvocation
from krill.signals import describe_exit
from krill.sweep import sweeper
from krill.sweep.sweeper import Sweeper

log = logging.getLogger("krill")


class _SweepLauncher(Launcher):
    """Knows the command; the points are those of the sweep, validated already."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """What Hydra hands over."""
        self.run_task: Callable[[Any], Any] = task_function


class PoolLauncher(_SweepLauncher):
    """The points of a sweep on this machine, each in a process of its own."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run those that are not finished; how they ended is in their folders."""
        current = sweeper.get_active_sweep()
        if current.dry_run:  # told here, one after the other
            for point in current.batch:
                self.run_task(point.invocation)
        elif points := job_files.skip_finished(current.batch):
            _run_in_pool(current, points)
        return []


class SlurmLauncher(_SweepLauncher):
    """The points of a sweep as jobs of SLURM."""

    def __init__(self, **asks: Any) -> None:
        """`asks`: what hydra.launcher sets; krill.launch.sbatch.build_sbatch_parameters reads it."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit those that are not finished nor in the queue, and wait unless detach=true."""
        from krill.launch import submit

        submit.submit_sweep(sweeper.get_active_sweep())
        return []


def register_plugins() -> None:
    """Make them known to Hydra, which takes plugins from the package hydra_plugins only."""
    sys.modules["hydra_plugins.krill"] = sys.modules[__name__]
    for plugin in (PoolLauncher, SlurmLauncher, Sweeper):
        plugin.__module__ = "hydra_plugins.krill"
        Plugins.instance().register(plugin)
    # conf/hydra/launcher has others of these names
    for name in ("submitit_local", "submitit_slurm"):
        ConfigStore.instance().repo["hydra"]["launcher"].pop(f"{name}.yaml", None)


def _run_in_pool(current: sweeper.Sweep, points: list[ValidatedInvocation]) -> None:
    from krill.launch import pool

    slots = job_files.build_slots(points)
    folder = job_files.create_submission_folder(current.folder / ".jobs")
    job_files.write_job_files(folder, points)
    apart = len(slots) > 1
    names = job_files.label_points(points)
    outputs = [folder / str(index) for index in range(len(points))] if apart else None

    def began(index: int) -> None:
        log.info("point %d of %d: %s", index + 1, len(points), names[index])

    def ended(index: int, code: int) -> bool:
        point, log_file = points[index], folder / f"{index}.log"
        if apart:
            _print_file(folder / f"{index}.out")
        if code:
            _record_failure(current, point, describe_exit(code), log_file if apart else None)
        log.info("%s: %s", names[index], describe_exit(code) if code else "finished")
        return not code or points[0].config.sweep.on_failure == "continue"

    commands = [
        [sys.executable, "-m", job_files.JOB_MODULE, str(folder), str(index)] for index in range(len(points))
    ]
    pool.run_commands(commands, slots, outputs, began, ended)


def _record_failure(
    current: sweeper.Sweep, point: ValidatedInvocation, how: str, log_file: Path | None
) -> None:
    from krill.runs.record import read_status

    assert point.folder is not None
    status = read_status(point.folder)
    if status is None or status["state"] in ("running", "queued"):  # it could not say so itself
        current.failures[point.folder] = f"{how}; {log_file}" if log_file and status is None else how


def _print_file(file: Path) -> None:
    text = file.read_text(encoding="utf-8", errors="replace")
    if text:
        print(text, end="", flush=True)
