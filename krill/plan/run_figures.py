"""Keeps what a finished run of krill-train took, for later plans on its machine."""

from __future__ import annotations

import logging
from pathlib import Path
from statistics import median

from krill.config.schema import TrainConfig
from krill.data.inputs import RunInputs
from krill.errors import KrillError
from krill.plan.dry_run import plan_here
from krill.plan.machine import get_calibration_folder
from krill.plan.timing import build_run_measurement, read_step_seconds
from krill.runs.record import read_status
from krill.training.oom_retry import MICRO_BATCH_KEY

log = logging.getLogger("krill")


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
    status = read_status(folder) or {}
    training = status.get("training_seconds")
    if get_calibration_folder() is None or MICRO_BATCH_KEY in status or not training:
        return
    try:
        plan = plan_here(config, inputs)
        waited_in_training = min(status.get("training_waited", 0.0), training)
        share = waited_in_training / training
        measurement = build_run_measurement(plan, folder, share)
        if measurement is None or plan.machine is None:
            return
        if status.get("starts") == 1:
            is_this_process = plan.setting.world_size == 1
            outside = seconds - training - (waited - waited_in_training if is_this_process else 0.0)
            outside -= status.get("preparation_seconds") or 0.0
            evaluation = plan.time.parts.get("evaluation", 0.0) if plan.time else 0.0
            startup = outside + (1 - share) * _measure_first_step(folder) - evaluation
            measurement = measurement.model_copy(update={"startup": max(0.0, startup)})
        plan.machine.keep(measurement)
    except KrillError as error:
        log.debug("calibration not kept: %s", error)


def _measure_first_step(folder: Path) -> float:
    """Returns the seconds that the first step of a run took more than the median of the others: its compilation."""
    first, *others = read_step_seconds(folder)
    return max(0.0, first - median(others))
