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
from krill.runs.record import read_json_object, read_status

ActualState = Literal[
    "not started", "queued", "running", "finished", "failed", "stopped", "killed", "cancelled"
]

ACTIVE_STATES = frozenset({"queued", "running"})
"""States of runs that somebody else is at, or will be."""


@dataclass(frozen=True)
class RunState:
    """One run."""

    state: ActualState
    detail: str = ""
    """What is to be said of it: the error, or what SLURM says."""
    job: str | None = None
    """Its SLURM job."""


def get_run_states(folders: Sequence[Path]) -> dict[Path, RunState]:
    """How the runs in `folders` stand; SLURM is asked once for all."""
    return determine_run_states({folder: read_run_or_submission_status(folder) for folder in folders})


def determine_run_states(statuses: Mapping[Path, dict[str, Any] | None]) -> dict[Path, RunState]:
    """`get_run_states` of runs whose status is known already."""
    jobs = {folder: find_slurm_job(status) for folder, status in statuses.items() if status}
    states = slurm.query_job_states(
        {job for folder, job in jobs.items() if job and _is_unsettled(statuses[folder])}
    )
    return {
        folder: _determine_run_state(folder, status, jobs.get(folder), states)
        for folder, status in statuses.items()
    }


def get_run_state(folder: Path) -> RunState:
    """How the run in `folder` stands."""
    return get_run_states([folder])[folder]


def read_run_or_submission_status(folder: Path) -> dict[str, Any] | None:
    """What is known of the run in `folder`; of a submission whose result has no folder yet: that it waits."""
    status = read_status(folder)
    return read_submission_status(folder) if status is None else status


def read_submission_status(folder: Path) -> dict[str, Any] | None:
    """A status for the one call in outputs/jobs/<…> that has no run folder, as a preparation has none."""
    call = read_json_object(folder / "0.json")
    if not call or call.get("folder") or not read_json_object(folder / slurm.JOBS_FILE):
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


def find_slurm_job(status: dict[str, Any]) -> str | None:
    """The SLURM job of a run: the one that it runs in, or waits for."""
    if status["state"] != "queued":
        return status.get("slurm_job_id")
    job = read_json_object(Path(status.get("submission") or os.devnull) / slurm.JOBS_FILE).get(
        status.get("submitted_as") or ""
    )
    return job if isinstance(job, str) else None


def find_log_file(folder: Path, status: dict[str, Any]) -> Path:
    """Where the messages of a run are: its log, else what its job printed before there was one."""
    own, job = folder / "log.txt", find_slurm_job(status)
    if own.exists() or not status.get("submission"):
        return own
    submission = Path(status["submission"])
    return (
        slurm.get_job_output_file(submission, job, "err")
        if job
        else submission / f"{status.get('submitted_as')}.log"
    )


def _is_unsettled(status: dict[str, Any] | None) -> bool:
    return status is not None and status["state"] in ("queued", "running", "stopped")


def _determine_run_state(
    folder: Path, status: dict[str, Any] | None, job: str | None, states: dict[str, str]
) -> RunState:
    if status is None:
        return RunState("not started")
    state, error = status["state"], status.get("error") or ""
    if not _is_unsettled(status):
        return RunState(state, error, job)
    if job is None:
        return _determine_process_state(folder, status)
    if job not in states:
        return RunState(state, f"job {job}; SLURM cannot be asked from here", job)
    of_job = states[job]
    if of_job in slurm.ACTIVE_JOB_STATES:
        return RunState("running" if of_job in ("RUNNING", "COMPLETING") else "queued", of_job.lower(), job)
    if of_job == "COMPLETED" and status.get("submission") == str(folder):  # nobody but SLURM can say so
        return RunState("finished", "", job)
    if of_job == "CANCELLED":
        return RunState("cancelled", f"SLURM: {of_job}", job)
    if state == "stopped":
        return RunState("stopped", error, job)
    return RunState("killed" if of_job == slurm.UNKNOWN_JOB_STATE else "failed", f"SLURM: {of_job}", job)


def _determine_process_state(folder: Path, status: dict[str, Any]) -> RunState:
    state, host, pid = status["state"], status.get("host"), status.get("pid")
    if state == "stopped":
        return RunState("stopped", status.get("error") or "")
    if state == "queued":
        return RunState("killed", "was never submitted")
    here = host == socket.gethostname()
    if here and not _is_process_alive(pid):
        return RunState("killed", f"process {pid} is gone")
    locked = _is_locked(folder)
    if locked:
        return RunState("running")
    if not here:  # some file systems show no locks of other machines
        return RunState("running", f"on {host}, says its status; its lock is not seen from here")
    if locked is None:
        return RunState("running", f"process {pid} lives; its lock cannot be read")
    return RunState("killed", f"process {pid} is gone")


def _is_process_alive(pid: Any) -> bool:
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
