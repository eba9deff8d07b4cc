"""One call that was handed over: `python -m krill.cli.job FOLDER INDEX [slurm]`, started by the pool or by SLURM."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from pathlib import Path

from krill.cli import app, jobs
from krill.cli.call import Call, Job
from krill.errors import DONE, FAILED, REQUEUE, Stopped
from krill.launch import task
from krill.runs.slurm import current_job

log = logging.getLogger("krill")

REQUEUES = 100
"""Of a job without hardware.slurm: hydra/launcher=submitit_slurm alone."""


def main(folder: Path, index: int, on_slurm: bool) -> int:
    """Make the call and return its exit code; on SLURM the job goes back into the queue where it is to go on."""
    app.listen()
    call = jobs.read(folder, index, on_slurm)
    assert call.job is not None
    job = call.job
    return app.told(call.command, lambda: _make(call, job))


def _make(call: Call, job: Job) -> int:
    point = importlib.import_module(f"krill.cli.{call.command}").point
    if not job.on_slurm:
        from krill.training.orphans import end_with_parent

        end_with_parent()
    try:
        point(call)
    except Exception as error:
        _record_failure(call, job, error)
        raise
    except Stopped as stop:
        goes_on = job.on_slurm and stop.exit_code == REQUEUE
        if goes_on and (done := task.back_to_queue(stop.received, _requeues(job))):
            log.info(done)
        raise
    return DONE


def _requeues(job: Job) -> int:
    slurm = job.config["hardware"]["slurm"]
    return int(slurm["requeues"]) if slurm else REQUEUES


def _record_failure(call: Call, job: Job, error: Exception) -> None:
    """Say in the folder what went wrong before the run could record itself."""
    from krill.runs.record import Record, now, read_status

    folder = job.folder
    if folder is None or (job.on_slurm and os.environ.get("SLURM_PROCID", "0") != "0"):
        return
    status = read_status(folder)
    if status is not None and status["state"] != "queued":
        return
    folder.mkdir(parents=True, exist_ok=True)
    record = Record(folder)
    with record.logged():
        log.debug("failed", exc_info=True)
    record.update(
        signature=job.identity, state="failed", error=str(error), end=now(),
        exit=getattr(error, "exit_code", FAILED), overrides=call.overrides, slurm_job_id=current_job(),
    )  # fmt: skip


if __name__ == "__main__":
    of_slurm = sys.argv[3:] == ["slurm"]
    offset = int(os.environ.get("SLURM_ARRAY_TASK_ID") or 0) if of_slurm else 0
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]) + offset, of_slurm))
