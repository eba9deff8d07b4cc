"""Queries the states of SLURM jobs, with one call for all of them.

Jobs are identified as in SLURM's commands: 17, or 17_3 for a task of an array.
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
"""States of jobs that run or may run again."""

JOBS_FILE = "jobs.json"
"""File in the folder of a submission: index of the job → its SLURM job id."""

UNKNOWN_JOB_STATE = "UNKNOWN"
"""State of a job that is neither in the queue nor in the accounting."""


def is_slurm_available() -> bool:
    """Returns whether SLURM can be queried from this machine."""
    return shutil.which("squeue") is not None


def get_current_job() -> str | None:
    """Returns the job in which this process runs."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def get_job_output_file(submission: Path, job: str, stream: Literal["out", "err"]) -> Path:
    """Returns the output file of a job's first task, as submitit names it."""
    return submission / f"{job}_0_log.{stream}"


def get_node_name() -> str:
    """Returns the name of this machine, in SLURM if it has one there."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def query_job_states(jobs: Collection[str]) -> dict[str, str]:
    """Returns job → state in SLURM (RUNNING, FAILED, OUT_OF_MEMORY, …); empty if SLURM cannot be queried.

    The queue is queried first because it is up to date; the accounting, if the cluster has one, is queried for jobs
    that have left the queue.
    """
    if not jobs or not is_slurm_available():
        return {}
    try:
        queue = run_slurm_command("squeue", "--me", "--array", "--states=all", "--noheader", "--format=%i|%T")
    except UsageError:
        return {}
    states = _parse_job_states(queue)
    if left := sorted(set(jobs) - states.keys()):
        accounting: dict[str, str] = {}
        with suppress(UsageError):  # not every cluster has accounting
            options = ("--noheader", "--parsable2", "--allocations", "--format=JobID,State")
            accounting = _parse_job_states(run_slurm_command("sacct", *options, f"--jobs={','.join(left)}"))
        # The accounting lags by some seconds; a job that has left the queue is not active in any case.
        states |= {job: _normalize_final_state(accounting.get(job)) for job in left}
    return {job: states[job] for job in jobs}


def _parse_job_states(lines: list[str]) -> dict[str, str]:
    return {job: state for job, bar, state in (line.partition("|") for line in lines) if bar}


def _normalize_final_state(state: str | None) -> str:
    name = (state or UNKNOWN_JOB_STATE).split()[0]  # CANCELLED by 1000
    return UNKNOWN_JOB_STATE if name in ACTIVE_JOB_STATES else name


def run_slurm_command(*arguments: str) -> list[str]:
    """Runs a SLURM command and returns the lines of its output. Raises UsageError with SLURM's message."""
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"{arguments[0]}: SLURM does not respond ({error})") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or [
            f"ended with exit code {done.returncode}"
        ]
        raise UsageError(f"{arguments[0]}: {lines[-1]}")
    return done.stdout.splitlines()
