"""Determines the actual state of a run from its status.json, its lock, its process and SLURM.

A killed run cannot update its status.json, which keeps the state "running".
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
from krill.runs.record import find_status_damage, read_json_object, read_status

ActualState = Literal[
    "not started", "queued", "running", "finished", "failed", "stopped", "killed", "cancelled", "damaged"
]

ACTIVE_STATES = frozenset({"queued", "running"})
"""States of runs that belong to a process or a queued job."""


@dataclass(frozen=True)
class RunState:
    """The actual state of a run."""

    state: ActualState
    detail: str = ""
    """The error, the state in SLURM, or what is uncertain about the state."""
    job: str | None = None
    """Its SLURM job."""


def get_run_states(folders: Sequence[Path]) -> dict[Path, RunState]:
    """Returns the states of the runs in `folders`, with one query to SLURM."""
    return determine_run_states({folder: read_run_or_submission_status(folder) for folder in folders})


def determine_run_states(statuses: Mapping[Path, dict[str, Any] | None]) -> dict[Path, RunState]:
    """Returns the states of runs whose status.json has been read already, with one query to SLURM."""
    jobs = {folder: find_slurm_job(status) for folder, status in statuses.items() if status}
    states = slurm.query_job_states(
        {job for folder, job in jobs.items() if job and _is_unsettled(statuses[folder])}
    )
    return {
        folder: _determine_run_state(folder, status, jobs.get(folder), states)
        for folder, status in statuses.items()
    }


def get_run_state(folder: Path) -> RunState:
    """Returns the state of the run in `folder`."""
    return get_run_states([folder])[folder]


def read_run_or_submission_status(folder: Path) -> dict[str, Any] | None:
    """Reads the status of the run in `folder`, or of a submission without a run folder, which is queued."""
    status = read_status(folder)
    return read_submission_status(folder) if status is None else status


def read_submission_status(folder: Path) -> dict[str, Any] | None:
    """Returns a status for the single invocation in outputs/jobs/<…> without a run folder, such as a preparation."""
    invocation = read_json_object(folder / "0.json")
    if not invocation or invocation.get("folder") or not read_json_object(folder / slurm.JOBS_FILE):
        return None
    try:
        hydra = invocation["hydra"]
        return {
            "state": "queued", "signature": "", "name": str(invocation["config"]["name"]),
            "command": str(hydra["job"]["config_name"]), "overrides": list(hydra["overrides"]["task"]),
            "submission": str(folder), "submitted_as": "0",
        }  # fmt: skip
    except (KeyError, TypeError):
        return None


def find_slurm_job(status: dict[str, Any]) -> str | None:
    """Returns the SLURM job in which a run is executed or for which it is queued."""
    if status["state"] != "queued":
        return status.get("slurm_job_id")
    job = read_json_object(Path(status.get("submission") or os.devnull) / slurm.JOBS_FILE).get(
        status.get("submitted_as") or ""
    )
    return job if isinstance(job, str) else None


def find_log_file(folder: Path, status: dict[str, Any]) -> Path:
    """Returns the log of a run, or the output file of its job if there is no log yet."""
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
        damage = find_status_damage(folder)
        return RunState("damaged", f"status.json {damage}") if damage else RunState("not started")
    state, error = status["state"], status.get("error") or ""
    if not _is_unsettled(status):
        return RunState(state, error, job)
    if job is None:
        return _determine_process_state(folder, status)
    if job not in states:
        return RunState(state, f"job {job}; SLURM cannot be queried from this machine", job)
    job_state = states[job]
    if job_state in slurm.ACTIVE_JOB_STATES:
        return RunState(
            "running" if job_state in ("RUNNING", "COMPLETING") else "queued", job_state.lower(), job
        )
    if job_state == "COMPLETED" and status.get("submission") == str(folder):  # known to SLURM only
        return RunState("finished", "", job)
    if job_state == "CANCELLED":
        return RunState("cancelled", f"SLURM: {job_state}", job)
    if state == "stopped":
        return RunState("stopped", error, job)
    return RunState(
        "killed" if job_state == slurm.UNKNOWN_JOB_STATE else "failed", f"SLURM: {job_state}", job
    )


def _determine_process_state(folder: Path, status: dict[str, Any]) -> RunState:
    state, host, pid = status["state"], status.get("host"), status.get("pid")
    if state == "stopped":
        return RunState("stopped", status.get("error") or "")
    if state == "queued":
        return RunState("killed", "was never submitted")
    is_local = host == socket.gethostname()
    if is_local and not _is_process_alive(pid):
        return RunState("killed", f"process {pid} is gone")
    is_locked = _is_locked(folder)
    if is_locked:
        return RunState("running")
    if not is_local:  # some file systems do not share locks between machines
        return RunState(
            "running", f"on {host} according to status.json; its lock is not visible on this machine"
        )
    if is_locked is None:
        return RunState("running", f"process {pid} is alive; its lock cannot be read")
    return RunState("killed", f"process {pid} is gone")


def _is_process_alive(pid: Any) -> bool:
    """Returns whether a process has this PID; the PID may have been reused, which the lock of the run shows."""
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError, TypeError, ValueError):
        return False
    except PermissionError:
        pass
    return True


def _is_locked(folder: Path) -> bool | None:
    """Returns whether a process holds the lock of a run; None if this cannot be determined.

    The lock file is only read: the check must neither create it nor require write permission, because it is also used
    for runs of other users.
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
