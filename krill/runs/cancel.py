"""Ending what runs or waits: a process here, a job of SLURM."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from krill.runs.find import is_sweep, points_of, read_sweep
from krill.runs.record import read_status, shown
from krill.runs.standing import GOES_ON, standings


def cancel(folder: Path) -> Iterator[tuple[str, bool]]:
    """End a run, or a sweep with all of its points; (what was done, whether it is or will be ended) of each."""
    passed_on = False
    if is_sweep(folder):
        told = read_sweep(folder)
        if told.get("host") == socket.gethostname() and _is_krill(told.get("pid")):
            os.kill(
                told["pid"], signal.SIGTERM
            )  # it would begin further points; those that run it signals itself
            passed_on = True
            yield f"process {told['pid']}, which runs {shown(folder)}: asked to save and end", True
    for point, stands in standings(points_of(folder) if is_sweep(folder) else [folder]).items():
        if stands.state not in GOES_ON:
            if not is_sweep(folder):
                yield f"{shown(point)} is {stands.state}: there is nothing to end", True
        elif stands.job:
            yield _job(point, stands.job)
        elif not passed_on:
            yield _process(point)


def _is_krill(pid: object) -> bool:
    """Whether the process of this number is one of krill's: numbers are used again."""
    try:
        return b"krill" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _job(point: Path, job: str) -> tuple[str, bool]:
    done = subprocess.run(["scancel", job], capture_output=True, text=True)
    if done.returncode:
        return f"{shown(point)}: scancel {job}: {done.stderr.strip()}", False
    return f"{shown(point)}: job {job} cancelled", True


def _process(point: Path) -> tuple[str, bool]:
    status = read_status(point) or {}
    host, pid = status.get("host"), status.get("pid")
    if host != socket.gethostname():
        return f"{shown(point)} runs on {host}: give the command there", False
    try:
        os.kill(int(str(pid)), signal.SIGTERM)
    except ProcessLookupError:
        return f"{shown(point)}: process {pid} has ended", True
    except PermissionError:
        return f"{shown(point)}: process {pid} belongs to somebody else", False
    return f"{shown(point)}: process {pid} asked to save and end", True
