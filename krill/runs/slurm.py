"""What SLURM says of jobs, asked once for all of them.

A job is known by the number that people type: 17, or 17_3 for a task of an array.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Literal

from krill.errors import UsageError

ACTIVE_JOB_STATES = frozenset(
    {
        "PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "STOPPED", "COMPLETING", "SIGNALING", "STAGE_OUT",
        "RESIZING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD",
    }
)  # fmt: skip
"""States of jobs that may still do something."""

JOBS_FILE = "jobs.json"
"""In the folder of a submission: index of the job → its number in SLURM."""

UNKNOWN_JOB_STATE = "UNKNOWN"
"""Of a job that neither the queue nor the accounting knows."""


def is_slurm_available() -> bool:
    """Whether this machine can ask SLURM."""
    return shutil.which("squeue") is not None


def get_current_job() -> str | None:
    """The job that this process runs in."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def get_job_output_file(submission: Path, job: str, stream: Literal["out", "err"]) -> Path:
    """The file of what a job prints, or its first task, where submitit puts it."""
    return submission / f"{job}_0_log.{stream}"


def get_node_name() -> str:
    """The name of this machine, as SLURM calls it where it does."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def query_job_states(jobs: Collection[str]) -> dict[str, str]:
    """Job → SLURM's state of it (RUNNING, FAILED, OUT_OF_MEMORY, …); empty where SLURM cannot be asked.

    The queue is asked first, as it is right at once; the accounting, where there is one, for those that have left it.
    """
    if not jobs or not is_slurm_available():
        return {}
    try:
        queue = run_slurm_command("squeue", "--me", "--array", "--states=all", "--noheader", "--format=%i|%T")
    except UsageError:
        return {}
    found = _parse_job_states(queue)
    if gone := sorted(set(jobs) - found.keys()):
        told: dict[str, str] = {}
        with suppress(UsageError):  # not every cluster has an accounting
            options = ("--noheader", "--parsable2", "--allocations", "--format=JobID,State")
            told = _parse_job_states(run_slurm_command("sacct", *options, f"--jobs={','.join(gone)}"))
        # The accounting is some seconds late: what has left the queue does nothing any more.
        found |= {job: _normalize_final_state(told.get(job)) for job in gone}
    return {job: found[job] for job in jobs}


def _parse_job_states(lines: list[str]) -> dict[str, str]:
    return {job: state for job, bar, state in (line.partition("|") for line in lines) if bar}


def _normalize_final_state(state: str | None) -> str:
    word = (state or UNKNOWN_JOB_STATE).split()[0]  # CANCELLED by 1000
    return UNKNOWN_JOB_STATE if word in ACTIVE_JOB_STATES else word


def run_slurm_command(*words: str) -> list[str]:
    """Lines of a SLURM command's answer. Raises UsageError that says what SLURM said."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"{words[0]}: SLURM does not answer ({error})") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or [
            f"ended with exit code {done.returncode}"
        ]
        raise UsageError(f"{words[0]}: {said[-1]}")
    return done.stdout.splitlines()
