"""How a run really stands: what it wrote of itself, held against its lock, its process and SLURM.

A run that is killed cannot say so: its status.json says "running" for ever.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from krill.runs import slurm
from krill.runs.record import read_object, read_status

Real = Literal["not started", "queued", "running", "finished", "failed", "stopped", "killed", "cancelled"]

GOES_ON = frozenset({"queued", "running"})
"""States of runs that somebody else is at, or will be."""


@dataclass(frozen=True)
class Standing:
    """One run."""

    state: Real
    why: str = ""
    """What is to be said of it: the error, or what SLURM says."""
    job: str | None = None
    """Its SLURM job."""


def standings(folders: Sequence[Path]) -> dict[Path, Standing]:
    """How the runs in `folders` stand; SLURM is asked once for all."""
    return standings_of({folder: status_at(folder) for folder in folders})


def standings_of(statuses: Mapping[Path, dict[str, Any] | None]) -> dict[Path, Standing]:
    """`standings` of runs whose status is known already."""
    jobs = {folder: job_of(status) for folder, status in statuses.items() if status}
    states = slurm.job_states({job for folder, job in jobs.items() if job and _is_open(statuses[folder])})
    return {
        folder: _standing(folder, status, jobs.get(folder), states) for folder, status in statuses.items()
    }


def standing(folder: Path) -> Standing:
    """How the run in `folder` stands."""
    return standings([folder])[folder]


def status_at(folder: Path) -> dict[str, Any] | None:
    """What is known of the run in `folder`; of a submission whose result has no folder yet: that it waits."""
    status = read_status(folder)
    return of_submission(folder) if status is None else status


def of_submission(folder: Path) -> dict[str, Any] | None:
    """A status for the one call in outputs/jobs/<…> that has no run folder, as a preparation has none."""
    call = read_object(folder / "0.json")
    if not call or call.get("folder") or not read_object(folder / slurm.JOBS):
        return None
    try:
        hydra = call["hydra"]
        return {
            "state": "queued", "signature": "", "name": str(call["config"]["name"]),
            "command": str(hydra["job"]["config_name"]), "overrides": list(hydra["overrides"]["task"]),
            "submission": str(folder), "submitted_as": "0",
        }  # fmt: skip
    except (KeyError, TypeError):
        return None


def job_of(status: dict[str, Any]) -> str | None:
    """The SLURM job of a run: the one that it runs in, or waits for."""
    if status["state"] != "queued":
        return status.get("slurm_job_id")
    job = read_object(Path(status.get("submission") or os.devnull) / slurm.JOBS).get(
        status.get("submitted_as") or ""
    )
    return job if isinstance(job, str) else None


def log_of(folder: Path, status: dict[str, Any]) -> Path:
    """Where the messages of a run are: its log, else what its job printed before there was one."""
    own, job = folder / "log.txt", job_of(status)
    if own.exists() or not status.get("submission"):
        return own
    submission = Path(status["submission"])
    return slurm.printed(submission, job, "err") if job else submission / f"{status.get('submitted_as')}.log"


def _is_open(status: dict[str, Any] | None) -> bool:
    return status is not None and status["state"] in ("queued", "running", "stopped")


def _standing(
    folder: Path, status: dict[str, Any] | None, job: str | None, states: dict[str, str]
) -> Standing:
    if status is None:
        return Standing("not started")
    state, error = status["state"], status.get("error") or ""
    if not _is_open(status):
        return Standing(state, error, job)
    if job is None:
        return _of_process(folder, status)
    if job not in states:
        return Standing(state, f"job {job}; SLURM cannot be asked from here", job)
    of_job = states[job]
    if of_job in slurm.LIVING:
        return Standing("running" if of_job in ("RUNNING", "COMPLETING") else "queued", of_job.lower(), job)
    if of_job == "COMPLETED" and status.get("submission") == str(folder):  # nobody but SLURM can say so
        return Standing("finished", "", job)
    if of_job == "CANCELLED":
        return Standing("cancelled", f"SLURM: {of_job}", job)
    if state == "stopped":
        return Standing("stopped", error, job)
    return Standing("killed" if of_job == slurm.UNKNOWN else "failed", f"SLURM: {of_job}", job)


def _of_process(folder: Path, status: dict[str, Any]) -> Standing:
    state, host, pid = status["state"], status.get("host"), status.get("pid")
    if state == "stopped":
        return Standing("stopped", status.get("error") or "")
    if state == "queued":
        return Standing("killed", "was never submitted")
    here = host == socket.gethostname()
    if here and not _lives(pid):
        return Standing("killed", f"process {pid} is gone")
    locked = _is_locked(folder)
    if locked:
        return Standing("running")
    if not here:  # some file systems show no locks of other machines
        return Standing("running", f"on {host}, says its status; its lock is not seen from here")
    if locked is None:
        return Standing("running", f"process {pid} lives; its lock cannot be read")
    return Standing("killed", f"process {pid} is gone")


def _lives(pid: Any) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError, TypeError, ValueError):
        return False
    except PermissionError:
        pass
    return True


def _is_locked(folder: Path) -> bool | None:
    """Whether a process holds the lock of a run; None: it cannot be told.

    The file is only read: looking must neither make one nor need the right to write, as runs of others are looked at.
    """
    try:
        file = os.open(folder / ".lock", os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return None
    finally:
        os.close(file)
    return False
