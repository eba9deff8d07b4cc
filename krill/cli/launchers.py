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

from krill.cli import jobs, sweep
from krill.cli.jobs import Point
from krill.cli.sweep import Sweeper
from krill.signals import died_of

log = logging.getLogger("krill")


class _Launcher(Launcher):
    """Knows the command; the points are those of the sweep, validated already."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """What Hydra hands over."""
        self.point: Callable[[Any], Any] = task_function


class PoolLauncher(_Launcher):
    """The points of a sweep on this machine, each in a process of its own."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run those that are not finished; how they ended is in their folders."""
        current = sweep.current()
        if current.dry_run:  # told here, one after the other
            for point in current.batch:
                self.point(point.call)
        elif points := jobs.unfinished(current.batch):
            _run(current, points)
        return []


class SlurmLauncher(_Launcher):
    """The points of a sweep as jobs of SLURM."""

    def __init__(self, **asks: Any) -> None:
        """`asks`: what hydra.launcher sets; krill.launch.submission.request reads it."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit those that are not finished nor in the queue, and wait unless detach=true."""
        from krill.cli import submit

        submit.many(sweep.current())
        return []


def register() -> None:
    """Make them known to Hydra, which takes plugins from the package hydra_plugins only."""
    sys.modules["hydra_plugins.krill"] = sys.modules[__name__]
    for plugin in (PoolLauncher, SlurmLauncher, Sweeper):
        plugin.__module__ = "hydra_plugins.krill"
        Plugins.instance().register(plugin)
    # conf/hydra/launcher has others of these names
    for name in ("submitit_local", "submitit_slurm"):
        ConfigStore.instance().repo["hydra"]["launcher"].pop(f"{name}.yaml", None)


def _run(current: sweep.Sweep, points: list[Point]) -> None:
    from krill.launch import pool

    slots = jobs.slots(points)
    folder = jobs.new_folder(current.folder / ".jobs")
    jobs.write(folder, points)
    apart = len(slots) > 1
    names = jobs.names(points)
    outputs = [folder / str(index) for index in range(len(points))] if apart else None

    def began(index: int) -> None:
        log.info("point %d of %d: %s", index + 1, len(points), names[index])

    def ended(index: int, code: int) -> bool:
        point, log_file = points[index], folder / f"{index}.log"
        if apart:
            _print(folder / f"{index}.out")
        if code:
            _keep_failure(current, point, died_of(code), log_file if apart else None)
        log.info("%s: %s", names[index], died_of(code) if code else "finished")
        return not code or points[0].config.sweep.on_failure == "continue"

    commands = [[sys.executable, "-m", jobs.MODULE, str(folder), str(index)] for index in range(len(points))]
    pool.run(commands, slots, outputs, began, ended)


def _keep_failure(current: sweep.Sweep, point: Point, how: str, log_file: Path | None) -> None:
    from krill.runs.record import read_status

    assert point.folder is not None
    status = read_status(point.folder)
    if status is None or status["state"] in ("running", "queued"):  # it could not say so itself
        current.failures[point.folder] = f"{how}; {log_file}" if log_file and status is None else how


def _print(file: Path) -> None:
    text = file.read_text(encoding="utf-8", errors="replace")
    if text:
        print(text, end="", flush=True)
