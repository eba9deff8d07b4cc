"""One call that was handed over: `python -m krill.cli.job FOLDER INDEX [slurm]`, started by the pool or by SLURM."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from pathlib import Path

from krill.cli import app
from krill.errors import DONE, FAILED, REQUEUE, SignalInterrupt
from krill.launch import job_files, slurm_env
from krill.launch.invocation import Invocation, InvocationPayload
from krill.runs.slurm import get_current_job

log = logging.getLogger("krill")

DEFAULT_MAX_REQUEUES = 100
"""Of a job without hardware.slurm: hydra/launcher=submitit_slurm alone."""


def main(folder: Path, index: int, on_slurm: bool) -> int:
    """Make the call and return its exit code; on SLURM the job goes back into the queue where it is to go on."""
    app.configure_logging()
    call = job_files.read_job_file(folder, index, on_slurm)
    assert call.payload is not None
    job = call.payload
    return app.run_and_report(call.command, lambda: _run_invocation(call, job))


def _run_invocation(call: Invocation, job: InvocationPayload) -> int:
    point = importlib.import_module(f"krill.cli.{call.command}").run_task
    if not job.is_on_slurm:
        from krill.signals import die_with_parent

        die_with_parent()
    try:
        point(call)
    except Exception as error:
        _record_failure(call, job, error)
        raise
    except SignalInterrupt as stop:
        goes_on = job.is_on_slurm and stop.exit_code == REQUEUE
        if goes_on and (done := slurm_env.requeue_job(stop.signal, _get_max_requeues(job))):
            log.info(done)
        raise
    return DONE


def _get_max_requeues(job: InvocationPayload) -> int:
    slurm = job.config["hardware"]["slurm"]
    return int(slurm["requeues"]) if slurm else DEFAULT_MAX_REQUEUES


def _record_failure(call: Invocation, job: InvocationPayload, error: Exception) -> None:
    """Say in the folder what went wrong before the run could record itself."""
    from krill.runs.record import Record, now, read_status

    folder = job.folder
    if folder is None or (job.is_on_slurm and os.environ.get("SLURM_PROCID", "0") != "0"):
        return
    status = read_status(folder)
    if status is not None and status["state"] != "queued":
        return
    folder.mkdir(parents=True, exist_ok=True)
    record = Record(folder)
    with record.log_to_file():
        log.debug("failed", exc_info=True)
    record.update(
        signature=job.identity, state="failed", error=str(error), end=now(),
        exit=getattr(error, "exit_code", FAILED), overrides=call.overrides, slurm_job_id=get_current_job(),
    )  # fmt: skip


if __name__ == "__main__":
    of_slurm = sys.argv[3:] == ["slurm"]
    offset = int(os.environ.get("SLURM_ARRAY_TASK_ID") or 0) if of_slurm else 0
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]) + offset, of_slurm))
