"""Cancels runs: signals their processes on this machine, or cancels their SLURM jobs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from krill.config.paths import relative_path
from krill.runs.find import is_sweep, list_point_folders, read_sweep
from krill.runs.record import read_status
from krill.runs.run_state import ACTIVE_STATES, get_run_states

CLOCK_TOLERANCE = 60.0
"""Seconds by which an adjusted clock may shift the start time of a process."""


def cancel(folder: Path) -> Iterator[tuple[str, bool]]:
    """Cancels a run, or a sweep with all of its points.

    Yields (message, whether it has ended or will end) for each process or job.
    """
    is_forwarded = False
    if is_sweep(folder):
        record = read_sweep(folder)
        if record.get("host") == socket.gethostname() and _is_sweep_process_alive(record):
            # Without the signal it would start further points; it forwards the signal to running points.
            is_forwarded = True
            yield _signal_process(folder, int(record["pid"]), "runs the sweep")
    for point, state in get_run_states(list_point_folders(folder) if is_sweep(folder) else [folder]).items():
        if state.state not in ACTIVE_STATES:
            if not is_sweep(folder):
                yield f"{relative_path(point)}: nothing to cancel, it is {state.state}", True
        elif state.job:
            yield _cancel_job(point, state.job)
        elif not is_forwarded:
            yield _cancel_process(point)


def _is_sweep_process_alive(sweep_record: dict[str, Any]) -> bool:
    """Returns whether the process that wrote this sweep.json is alive.

    Its PID may have been reused by another process, even of krill, which was then started later.
    """
    import psutil

    try:
        process = psutil.Process(int(sweep_record["pid"]))
        sweep_start = datetime.fromisoformat(sweep_record["start"]).timestamp()
        return process.create_time() < sweep_start + CLOCK_TOLERANCE and any(
            "krill" in argument for argument in process.cmdline()
        )
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False


def _cancel_job(point: Path, job: str) -> tuple[str, bool]:
    try:
        done = subprocess.run(["scancel", job], capture_output=True, text=True)
    except FileNotFoundError:
        return (
            f"{relative_path(point)}: scancel is not available; run it on a machine of the cluster: scancel {job}",
            False,
        )
    if done.returncode:
        return f"{relative_path(point)}: scancel {job}: {done.stderr.strip()}", False
    return f"{relative_path(point)}: job {job} cancelled", True


def _cancel_process(point: Path) -> tuple[str, bool]:
    status = read_status(point) or {}
    if status.get("host") != socket.gethostname():
        return f"{relative_path(point)}: the run is on {status.get('host')}; run this command there", False
    return _signal_process(point, status["pid"], "saves and exits")


def _signal_process(folder: Path, pid: int, what_it_does: str) -> tuple[str, bool]:
    """Sends SIGTERM; a process that was stopped (Ctrl-Z) continues, or it would never handle the signal."""
    try:
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        return f"{relative_path(folder)}: process {pid} has ended", True
    except PermissionError:
        return f"{relative_path(folder)}: process {pid} belongs to another user", False
    return f"{relative_path(folder)}: sent SIGTERM to process {pid}, which {what_it_does}", True
