"""Claims the folder of a run: a new one, or the folder of the unfinished run to resume.

    outputs/runs/<name>/<time>-<sig8>/      a run
    outputs/sweeps/<name>/<sig8>/           a point of a sweep

A folder belongs to the process that holds the lock in it. The kernel releases the lock when that process dies, which
distinguishes an unfinished run whose writer is gone from an active one. A run that waits in SLURM's queue belongs to
its job.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from krill.atomic import create_folder, create_timestamped_folder
from krill.config.paths import quote_path, relative_path
from krill.errors import UsageError
from krill.runs import slurm
from krill.runs.record import find_status_damage, read_status
from krill.runs.run_state import ACTIVE_STATES, RunState, get_run_state

RESUME_MODES = ("auto", "local", "remote")
"""Values of resume= that are not the folder of a run; true is local."""
LOCK_SECONDS = 0.1
"""Seconds to wait for a lock: a command that reads the state of the run holds it for a moment."""
_LOG_LINE = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ ")
"""The beginning of a line of a run's log.txt (krill.runs.record)."""


@dataclass
class Claim:
    """A run folder that this process may write until it releases the lock."""

    folder: Path
    lock: FileLock | None
    state: Literal["new", "resumed", "finished"]
    """finished: the folder already has the finished result; there is nothing to do, and no lock is held."""

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        if self.lock is not None:
            self.lock.release()


def claim(
    signature: str,
    runs_folder: Path,
    output: Path | None = None,
    resume: bool | str = "auto",
    allow_changed: bool = False,
    dry_run: bool = False,
) -> Claim:
    """Claims the folder for a run: a new one in `runs_folder`, or the folder of the run to resume.

    Args:
        signature: Signature of the run.
        runs_folder: Folder of the runs of this name.
        output: The folder to use (output=, or the point of a sweep); None: chosen by `resume`.
        resume: Value of the key `resume`.
        allow_changed: The run in the folder that `resume` names may have another signature.
        dry_run: Creates no folder and holds no lock; the folder of a new run is `output` or `runs_folder`.

    Raises:
        UsageError: the folder belongs to another run or an active process, there is no run to resume, or status.json
            of what may be the run to resume is damaged.
    """
    resume_folder = Path(resume) if isinstance(resume, str) and resume not in RESUME_MODES else None
    if allow_changed and resume_folder is None:
        raise UsageError("resume_changed=true needs the folder of the run to resume: set resume=<folder>")
    if output is not None:
        return _claim_output(output, signature, resume, dry_run)
    if resume_folder is not None:
        return _resume_named(resume_folder, signature, allow_changed, dry_run)
    if resume is not False:
        for folder in sorted(runs_folder.glob("*"), reverse=True):
            if resume != "remote" and _is_named_after(folder, signature):
                _raise_if_damaged(folder, "resume=false starts a new run")
            if _is_unfinished(folder, signature, from_hub=resume == "remote"):
                lock = _try_lock(folder)
                if lock and _is_unfinished(folder, signature):  # the writer may have finished in the meantime
                    return _build_claim(folder, lock, "resumed", dry_run)
                if lock:
                    lock.release()
    if resume in ("local", True):
        raise UsageError(
            f"resume={resume}: no unfinished run of this configuration in {runs_folder}; set resume=auto to start one"
        )
    return Claim(runs_folder, None, "new") if dry_run else _claim_new(runs_folder, signature)


def _build_claim(folder: Path, lock: FileLock, state: Literal["new", "resumed"], dry_run: bool) -> Claim:
    if dry_run:
        lock.release()
    return Claim(folder, None if dry_run else lock, state)


def _claim_new(runs_folder: Path, signature: str) -> Claim:
    try:
        folder = create_timestamped_folder(runs_folder, signature[:8])
    except FileExistsError as error:
        raise UsageError(
            f"{runs_folder}: a thousand runs were started in the same second; try again"
        ) from error
    return Claim(folder, _try_lock(folder), "new")


def _claim_output(folder: Path, signature: str, resume: bool | str, dry_run: bool) -> Claim:
    """Claims the folder of output=, which must be empty or hold this run."""
    status = read_status(folder)
    if status is None:
        _raise_if_damaged(folder, "remove the folder to start over")
        if folder.exists() and (
            not folder.is_dir() or not all(map(_is_left_before_status, folder.iterdir()))
        ):
            raise UsageError(
                f"output={folder} is not empty and does not hold a run of krill; use another folder"
            )
        if dry_run:
            return Claim(folder, None, "new")
        create_folder(folder)
        return _claim_unstarted(folder, None, signature, resume, dry_run)
    if status["signature"] != signature:
        raise UsageError(f"output={folder} holds a run of another configuration; use another folder")
    if status["state"] == "finished":
        return Claim(folder, None, "finished")
    if status["state"] == "queued" and "starts" not in status:  # submitted and not started yet
        _raise_if_queued(folder)
        return _claim_unstarted(folder, status, signature, resume, dry_run)
    if resume is False:
        raise UsageError(
            f"output={folder} holds an unfinished run and resume=false is set; use another folder"
        )
    return _resume_in(folder, dry_run)


def _claim_unstarted(
    folder: Path, status: dict[str, Any] | None, signature: str, resume: bool | str, dry_run: bool
) -> Claim:
    """Claims a folder whose run has not started, according to `status`, which was read before the lock was held."""
    lock = _lock_or_raise(folder)
    if read_status(folder) == status:
        return _build_claim(folder, lock, "new", dry_run)
    lock.release()  # another process has started the run since, and perhaps finished it
    return _claim_output(folder, signature, resume, dry_run)


def _resume_named(folder: Path, signature: str, allow_changed: bool, dry_run: bool) -> Claim:
    status, path = read_status(folder), quote_path(folder)
    if status is None and find_status_damage(folder):
        if allow_changed:
            return _resume_in(folder.absolute(), dry_run)
        _raise_if_damaged(folder, "resume=false starts a new run")
    if status is None:
        raise UsageError(
            f"resume={folder}: not a run of krill (status.json is missing); krill-runs lists the runs"
        )
    is_other = status["signature"] != signature
    if is_other and status["state"] == "finished":
        raise UsageError(
            f"resume={folder}: the run has finished, with another configuration; set continue={path} to train it "
            f"for longer, or from={path} to start a new run with its settings"
        )
    if is_other and not allow_changed:
        raise UsageError(
            f"resume={folder}: the run has another configuration; set from={path} to start a new run with its "
            f"settings, continue={path} to train it for longer, or resume_changed=true to resume it with this "
            "configuration"
        )
    if status["state"] == "finished":
        return Claim(folder, None, "finished")
    return _resume_in(folder.absolute(), dry_run)


def _resume_in(folder: Path, dry_run: bool) -> Claim:
    _raise_if_queued(folder)
    lock = _lock_or_raise(folder)
    if (read_status(folder) or {}).get("state") == "finished":  # by the process that held the lock
        lock.release()
        return Claim(folder, None, "finished")
    return _build_claim(folder, lock, "resumed", dry_run)


def _is_named_after(folder: Path, signature: str) -> bool:
    """Returns whether `_claim_new` created `folder` for a run with this signature."""
    return re.search(rf"-{signature[:8]}(-\d+)?$", folder.name) is not None


def _raise_if_damaged(folder: Path, alternative: str) -> None:
    """Raises UsageError if status.json is damaged, so that an unfinished run is not started over unnoticed."""
    if damage := find_status_damage(folder):
        raise UsageError(
            f"{relative_path(folder)}/status.json {damage}; the run may be unfinished. Add "
            f"resume={quote_path(folder)} resume_changed=true, without output=, to resume it with this configuration "
            f"from its last checkpoint; {alternative}"
        )


def _is_unfinished(folder: Path, signature: str, from_hub: bool = False) -> bool:
    """Returns whether the run in `folder` can be resumed by a run with this signature.

    With `from_hub`, it must also have started from a checkpoint on the Hub (krill.runs.hub).
    """
    status = read_status(folder)
    if status is None or (from_hub and "remote" not in status):
        return False
    return (
        status["signature"] == signature
        and status["state"] != "finished"
        and not _find_active_job_state(folder)
    )


def _find_active_job_state(folder: Path) -> RunState | None:
    """Returns the state of a run that belongs to an active SLURM job, else None; inside a job always None."""
    if slurm.get_current_job():
        return None
    state = get_run_state(folder)
    return state if state.job and state.state in ACTIVE_STATES else None


def _raise_if_queued(folder: Path) -> None:
    if state := _find_active_job_state(folder):
        raise UsageError(
            f"{folder} belongs to SLURM job {state.job}, which is {state.detail}; to cancel it: "
            f"krill-runs cancel {quote_path(folder)}"
        )


def _is_left_before_status(path: Path) -> bool:
    """Returns whether `path` is what a run leaves that was killed, or found the disk full, before status.json."""
    if path.name.startswith("."):
        return True
    if path.name != "log.txt" or not path.is_file():
        return False
    with open(path, "rb") as file:
        line = file.readline()
    return not line or _LOG_LINE.match(line) is not None


def _try_lock(folder: Path) -> FileLock | None:
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=LOCK_SECONDS, poll_interval=LOCK_SECONDS / 10)
    except Timeout:
        return None
    return lock


def _lock_or_raise(folder: Path) -> FileLock:
    lock = _try_lock(folder)
    if lock is None:
        status = read_status(folder) or {}
        # Unknown until the run that has just claimed the folder begins.
        is_known = status.get("pid") and status.get("host")
        writer = f"process {status['pid']} on {status['host']}" if is_known else "another process"
        raise UsageError(
            f"{folder} is being written by {writer}; wait for it, cancel it with krill-runs cancel "
            f"{quote_path(folder)}, or use another folder"
        )
    return lock
