"""Keeps what a finished run of krill-train took, for later plans on its machine."""

from __future__ import annotations

import logging
from pathlib import Path

from krill.config.schema import TrainConfig
from krill.data.inputs import RunInputs
from krill.errors import KrillError
from krill.plan.dry_run import plan_here
from krill.plan.machine import get_calibration_folder
from krill.plan.run_plan import RunPlan
from krill.plan.timing import build_run_measurement
from krill.runs.record import read_status
from krill.training.oom_retry import MICRO_BATCH_KEY

log = logging.getLogger("krill")

MAX_WAITED_SHARE = 0.9
"""The share of the time that is taken to have been waited for a core at most."""


def keep_run_figures(
    config: TrainConfig, inputs: RunInputs, folder: Path, seconds: float, waited: float
) -> None:
    """Keeps the time of a step, the peak memory and the start-up of the finished run in `folder`.

    Not those of a run whose micro batch did not fit; of a run that was resumed without its start-up.

    Args:
        config: The run.
        inputs: Those of `config`.
        folder: The run folder.
        seconds: Those of the command.
        waited: Those in which it waited for a core.
    """
    waited = min(waited, MAX_WAITED_SHARE * seconds)
    status = read_status(folder) or {}
    if get_calibration_folder() is None or MICRO_BATCH_KEY in status:
        return
    try:
        plan = plan_here(config, inputs)
        measurement = build_run_measurement(plan, folder, waited / seconds)
        if measurement is None or plan.machine is None:
            return
        if status.get("starts") == 1:
            startup = _compute_startup_seconds(plan, measurement.step, seconds - waited)
            measurement = measurement.model_copy(update={"startup": startup})
        plan.machine.keep(measurement)
    except KrillError as error:
        log.debug("calibration not kept: %s", error)


def _compute_startup_seconds(plan: RunPlan, step: float, seconds: float) -> float:
    """Returns the seconds of a command besides its steps, and what its plan has for validations and saves."""
    assert plan.time is not None
    assert plan.steps is not None
    others = sum(
        value for part, value in plan.time.parts.items() if part not in ("steps", "optimizer", "startup")
    )
    return max(0.0, seconds - plan.steps * step - others)
