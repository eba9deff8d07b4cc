"""The folder of a run: a new one, or the one where this very run goes on.

    outputs/runs/<name>/<time>-<sig8>/      a run
    outputs/sweeps/<name>/<sig8>/           a sweep's point

A folder belongs to the process that holds the lock in it; the kernel gives the lock up when that process dies,
so that an unfinished run whose writer is gone can be told from one that lives. One that waits in SLURM's queue
belongs to its job.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from krill.atomic import create_timestamped_folder
from krill.errors import UsageError
from krill.runs import slurm
from krill.runs.record import read_status
from krill.runs.run_state import ACTIVE_STATES, RunState, get_run_state


@dataclass
class Claim:
    """A run folder that this process may write, until it ends."""

    folder: Path
    lock: FileLock | None
    state: Literal["new", "continued", "finished"]
    """finished: the folder holds the finished result already; nothing is to be done (and no lock is held)."""

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        if self.lock is not None:
            self.lock.release()


def claim(
    signature: str, runs: Path, place: Path | None = None, resume: bool | str = "auto", changed: bool = False
) -> Claim:
    """The folder for a run: a new one below `runs`, or the one where this very run goes on.

    `place`: the folder that was asked for (output=, a sweep's point), which then is the one. `changed`: the run
    in the folder that `resume` names may have had another signature until now. Raises UsageError
    when it belongs to another run or to a living process, or when there is nothing to resume.
    """
    named = Path(resume) if isinstance(resume, str) and resume not in ("auto", "local", "remote") else None
    if changed and named is None:
        raise UsageError("resume_changed=true needs the folder of the run that is to go on: resume=<folder>")
    if place is not None:
        return _claim_output(place, signature, resume)
    if named is not None:
        return _resume_named(named, signature, changed)
    if resume is not False:
        for folder in sorted(runs.glob("*"), reverse=True):
            if _is_unfinished(folder, signature, from_hub=resume == "remote"):
                lock = _try_lock(folder)
                if lock and _is_unfinished(folder, signature):  # its writer may have finished in between
                    return Claim(folder, lock, "continued")
                if lock:
                    lock.release()
    if resume in ("local", True):
        raise UsageError(f"resume={resume}: no unfinished run of this configuration in {runs}")
    return _claim_new(runs, signature)


def _claim_new(runs: Path, signature: str) -> Claim:
    try:
        folder = create_timestamped_folder(runs, signature[:8])
    except FileExistsError as error:
        raise UsageError(f"{runs}: a thousand runs began in one second") from error
    return Claim(folder, _try_lock(folder), "new")


def _claim_output(folder: Path, signature: str, resume: bool | str) -> Claim:
    """The folder that was named: empty, or holding this very run."""
    status = read_status(folder)
    if status is None:
        if folder.exists() and (not folder.is_dir() or any(_list_visible(folder))):
            raise UsageError(f"output={folder} is not empty and holds no run of krill; name another folder")
        folder.mkdir(parents=True, exist_ok=True)
        return Claim(folder, _lock_or_raise(folder), "new")
    if status["signature"] != signature:
        raise UsageError(f"output={folder} holds a run of another configuration; name another folder")
    if status["state"] == "finished":
        return Claim(folder, None, "finished")
    if status["state"] == "queued" and "starts" not in status:  # only submitted so far
        _raise_if_queued(folder)
        return Claim(folder, _lock_or_raise(folder), "new")
    if resume is False:
        raise UsageError(f"output={folder} holds an unfinished run and resume=false; name another folder")
    return _resume_in(folder)


def _resume_named(folder: Path, signature: str, changed: bool) -> Claim:
    status = read_status(folder)
    if status is None:
        raise UsageError(f"resume={folder}: no run of krill there (status.json is missing)")
    if status["signature"] != signature and not changed:
        raise UsageError(
            f"resume={folder}: that run has another configuration; to begin a new run from its settings "
            f"write from={folder}, to go on in it with this one resume_changed=true"
        )
    if status["state"] == "finished":
        return Claim(folder, None, "finished")
    return _resume_in(folder.absolute())


def _resume_in(folder: Path) -> Claim:
    _raise_if_queued(folder)
    lock = _lock_or_raise(folder)
    if (read_status(folder) or {}).get("state") == "finished":  # by the process that held it until now
        lock.release()
        return Claim(folder, None, "finished")
    return Claim(folder, lock, "continued")


def _is_unfinished(folder: Path, signature: str, from_hub: bool = False) -> bool:
    """`from_hub`: and the run went on there from a checkpoint on the Hub (krill.runs.hub)."""
    status = read_status(folder)
    if status is None or (from_hub and "remote" not in status):
        return False
    return (
        status["signature"] == signature
        and status["state"] != "finished"
        and not _find_active_job_state(folder)
    )


def _find_active_job_state(folder: Path) -> RunState | None:
    """How a run stands that a job of SLURM has or will have; None: there is none. A job itself need not ask."""
    if slurm.get_current_job():
        return None
    stands = get_run_state(folder)
    return stands if stands.job and stands.state in ACTIVE_STATES else None


def _raise_if_queued(folder: Path) -> None:
    if stands := _find_active_job_state(folder):
        raise UsageError(
            f"{folder} belongs to SLURM job {stands.job}, which is {stands.detail}; to end that: "
            f"krill-runs cancel {folder}"
        )


def _list_visible(folder: Path) -> Iterator[Path]:
    return (entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _try_lock(folder: Path) -> FileLock | None:
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return None
    return lock


def _lock_or_raise(folder: Path) -> FileLock:
    lock = _try_lock(folder)
    if lock is None:
        status = read_status(folder) or {}
        raise UsageError(
            f"{folder} is being written by process {status.get('pid', '?')} on {status.get('host', '?')}"
        )
    return lock
