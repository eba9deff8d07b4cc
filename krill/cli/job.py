"""Runs an invocation from a job file: `python -m krill.cli.job FOLDER INDEX [slurm]`, for the pool and SLURM jobs."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
from pathlib import Path

from krill.cli import app
from krill.errors import DONE, FAILED, REQUEUE, SignalInterrupt
from krill.launch import job_files, slurm_env
from krill.launch.invocation import SubmittedJob
from krill.runs.slurm import get_current_job

log = logging.getLogger("krill")

DEFAULT_MAX_REQUEUES = 100
"""The value for a job without hardware.slurm, as with hydra/launcher=submitit_slurm alone."""


def main(folder: Path, index: int, is_on_slurm: bool) -> int:
    """Runs the job and returns its exit code; on SLURM, requeues it if a signal interrupted it."""
    app.configure_logging()
    job = job_files.read_job_file(folder, index, is_on_slurm)
    return app.run_and_report(job.command, lambda: _run_job(job))


def _run_job(job: SubmittedJob) -> int:
    run_task = importlib.import_module(f"krill.cli.{job.command}").run_task
    if not job.is_on_slurm:
        from krill.signals import die_with_parent

        die_with_parent()
    try:
        run_task(job)
    except Exception as error:
        _record_failure(job, error)
        raise
    except SignalInterrupt as interrupt:
        should_requeue = job.is_on_slurm and interrupt.exit_code == REQUEUE
        if should_requeue and (message := slurm_env.requeue_job(interrupt.signal, _get_max_requeues(job))):
            log.info("%s%s", message, _describe_planned_limit(job, interrupt.signal))
        raise
    return DONE


def _describe_planned_limit(job: SubmittedJob, received: signal.Signals | None) -> str:
    """Returns a remark on a job that reached a time limit that was planned, where it may have been too short."""
    slurm = job.config.hardware.slurm
    if received != signal.SIGUSR2 or slurm is None or slurm.time != "auto":
        return ""
    return "; hardware.slurm.time=auto was less than it needs, and it resumes with the same limit"


def _get_max_requeues(job: SubmittedJob) -> int:
    slurm = job.config.hardware.slurm
    return slurm.requeues if slurm else DEFAULT_MAX_REQUEUES


def _record_failure(job: SubmittedJob, error: Exception) -> None:
    """Records in the result folder an error that occurred before the run could record its own."""
    from krill.runs.record import Record, find_status_damage, now, read_status

    if job.folder is None or (job.is_on_slurm and os.environ.get("SLURM_PROCID", "0") != "0"):
        return
    status = read_status(job.folder)
    if find_status_damage(job.folder) or (status is not None and status["state"] != "queued"):
        return
    job.folder.mkdir(parents=True, exist_ok=True)
    record = Record(job.folder)
    record.update(  # first: without status.json, a folder with other files would not be recognized as a run
        signature=job.identity, state="failed", error=str(error), end=now(),
        exit=getattr(error, "exit_code", FAILED), overrides=job.overrides, slurm_job_id=get_current_job(),
    )  # fmt: skip
    with record.log_to_file():
        log.debug("failed", exc_info=True)


if __name__ == "__main__":
    runs_on_slurm = sys.argv[3:] == ["slurm"]
    offset = int(os.environ.get("SLURM_ARRAY_TASK_ID") or 0) if runs_on_slurm else 0
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]) + offset, runs_on_slurm))
