"""One call that was handed over: `python -m krill.cli.job FOLDER INDEX [slurm]`, started by the pool or by SLURM."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from pathlib import Path

from krill.cli import app, jobs
from krill.errors import DONE, REQUEUE, Stopped
from krill.launch import task

log = logging.getLogger("krill")


def main(folder: Path, index: int, on_slurm: bool) -> int:
    """Make the call and return its exit code; on SLURM the job goes back into the queue where it is to go on."""
    app.listen()
    call = jobs.read(folder, index, on_slurm)
    return app.told(call.command, lambda: _make(call, on_slurm))


def _make(call: app.Call, on_slurm: bool) -> int:
    point = importlib.import_module(f"krill.cli.{call.command}").point
    if not on_slurm:
        from krill.training.orphans import end_with_parent

        end_with_parent()
        point(call)
        return DONE
    task.announce()
    try:
        point(call)
    except Stopped as stop:
        assert call.job is not None
        slurm = call.job.config["hardware"]["slurm"] or {}
        if stop.exit_code == REQUEUE and (
            done := task.back_to_queue(stop.received, slurm.get("requeues", 100))
        ):
            log.info(done)
        raise
    return DONE


if __name__ == "__main__":
    of_slurm = sys.argv[3:] == ["slurm"]
    offset = int(os.environ.get("SLURM_ARRAY_TASK_ID") or 0) if of_slurm else 0
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]) + offset, of_slurm))
