"""Ending what runs or waits: a process here, a job of SLURM."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from krill.runs.find import is_sweep, list_point_folders, read_sweep
from krill.runs.record import read_status, relative_path
from krill.runs.run_state import ACTIVE_STATES, get_run_states

CLOCK_TOLERANCE = 60.0
"""Seconds that a clock which is set may move the beginning of a process."""


def cancel(folder: Path) -> Iterator[tuple[str, bool]]:
    """End a run, or a sweep with all of its points; (what was done, whether it is or will be ended) of each."""
    passed_on = False
    if is_sweep(folder):
        told = read_sweep(folder)
        if told.get("host") == socket.gethostname() and _is_sweep_process_alive(told):
            # It would begin further points; those that run it signals itself.
            os.kill(told["pid"], signal.SIGTERM)
            passed_on = True
            yield f"process {told['pid']}, which runs {relative_path(folder)}: asked to save and end", True
    for point, stands in get_run_states(list_point_folders(folder) if is_sweep(folder) else [folder]).items():
        if stands.state not in ACTIVE_STATES:
            if not is_sweep(folder):
                yield f"{relative_path(point)} is {stands.state}: there is nothing to end", True
        elif stands.job:
            yield _cancel_job(point, stands.job)
        elif not passed_on:
            yield _signal_process(point)


def _is_sweep_process_alive(told: dict[str, Any]) -> bool:
    """Whether the process that wrote this sweep.json still is: its number may have been given to another one, even of
    krill, which began later."""
    import psutil

    try:
        process = psutil.Process(int(told["pid"]))
        wrote = datetime.fromisoformat(told["start"]).timestamp()
        return process.create_time() < wrote + CLOCK_TOLERANCE and any(
            "krill" in word for word in process.cmdline()
        )
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False


def _cancel_job(point: Path, job: str) -> tuple[str, bool]:
    try:
        done = subprocess.run(["scancel", job], capture_output=True, text=True)
    except FileNotFoundError:
        return f"{relative_path(point)}: no scancel here; where SLURM is, type scancel {job}", False
    if done.returncode:
        return f"{relative_path(point)}: scancel {job}: {done.stderr.strip()}", False
    return f"{relative_path(point)}: job {job} cancelled", True


def _signal_process(point: Path) -> tuple[str, bool]:
    status = read_status(point) or {}
    host, pid = status.get("host"), status.get("pid")
    if host != socket.gethostname():
        return f"{relative_path(point)} runs on {host}: give the command there", False
    try:
        os.kill(int(str(pid)), signal.SIGTERM)
    except ProcessLookupError:
        return f"{relative_path(point)}: process {pid} has ended", True
    except PermissionError:
        return f"{relative_path(point)}: process {pid} belongs to somebody else", False
    return f"{relative_path(point)}: process {pid} asked to save and end", True
