"""Turns timed steps, or the record of a finished run, into a measurement for later plans on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, median
from typing import Any

from krill.errors import UsageError
from krill.plan.memory import plan_memory
from krill.plan.run_plan import RunPlan
from krill.plan.step_time import STEP_MOMENTS, Measurement, Peak, fit_step_seconds
from krill.runs.json_lines import read_metrics
from krill.runs.record import read_status
from krill.training.batch_shape import BatchShape

SMALL_SHARE = 4
"""The smaller of the two sizes has this part of the rows of the planned one."""

MIN_RUN_LINES = 3
"""Lines of metrics after the first one that a run needs to leave its figures."""

NOTABLE_WAIT = 0.05
"""The share of the time without a core from which on it is printed."""


@dataclass(frozen=True)
class TimedSize:
    """The steps of one micro batch size."""

    rows: int
    passes: int
    """Forward passes of a step."""
    samples: list[dict[str, float]]
    """Seconds of each step without those in which other processes had the core: passes, optimizer, step (all of it);
    and wall, all of it as it was."""
    peak: int
    """Peak memory in bytes: of the process so far, or of the tensors on a GPU."""


@dataclass(frozen=True)
class TimedTraining:
    """What was timed: one or two sizes, the planned one last."""

    sizes: list[TimedSize]
    startup: float
    """Seconds from the start of the process to its first step, without the text."""


@dataclass(frozen=True)
class TimedPlan:
    """A measurement, and what is printed of it besides."""

    measurement: Measurement
    rows: tuple[int, ...]
    """The sizes, in rows of a micro batch."""
    steps: int
    """The number of steps that were timed."""
    waited: float
    """The share of the time in which other processes had the core."""
    file: Path | None
    """Where the measurement is kept; None: nowhere."""

    def to_json(self) -> dict[str, Any]:
        """Returns the measurement and how it was made as JSON values."""
        return {
            **self.measurement.model_dump(mode="json"),
            "rows": self.rows,
            "steps": self.steps,
            "waited": self.waited,
            "file": self.file and str(self.file),
        }


def choose_sizes(plan: RunPlan) -> list[tuple[int, int]]:
    """Returns the sizes to time: rows of a micro batch and passes of a step, the planned size last.

    Raises UsageError for a run that cannot be measured here.
    """
    if plan.machine is None:
        raise UsageError("plan.measure=true measures this machine; leave plan.device out")
    if plan.setting.world_size > 1:
        raise UsageError(
            "plan.measure=true measures one rank; use hardware.processes=1. A run on several ranks leaves its "
            "figures when it finishes"
        )
    if not plan.fits:
        raise UsageError(
            "plan.measure=true: the run does not fit; plan it without, and apply what it advises"
        )
    batch = plan.setting.batch
    passes = min(2, batch.accumulation_steps)
    rows = batch.micro_batch_size
    sizes = {max(1, rows // SMALL_SHARE), rows}
    return [(size, passes) for size in sorted(sizes)]


def build_measurement(plan: RunPlan, timed: TimedTraining) -> Measurement:
    """Returns the measurement of `plan` by its timed steps.

    The lower quartile of the steps counts, without the time in which other processes had the core: what the machine
    can do. The spread is that of all steps as they were.
    """
    tokens = plan.config.sequence_len // plan.setting.context_parallel
    line = []
    for size in timed.sizes:
        passes = _get_lower_quartile([sample["passes"] for sample in size.samples])
        line.append((size.rows * tokens, passes / size.passes))
    last = timed.sizes[-1]
    samples = [sample for size in timed.sizes for sample in size.samples]
    optimizer = _get_lower_quartile([sample["optimizer"] for sample in samples])
    rest = [sample["step"] - sample["passes"] - sample["optimizer"] for sample in samples]
    seconds = fit_step_seconds(line, max(0.0, _get_lower_quartile(rest)), optimizer)
    whole = [sample["wall"] for sample in last.samples]
    work = plan.work.model_copy(update={"passes": last.passes})
    passes_seconds = work.passes * (seconds.per_pass + work.tokens * seconds.per_token)
    step = passes_seconds + seconds.per_step + seconds.optimizer
    return Measurement(
        kind="steps",
        time=_now(),
        configuration=plan.configuration,
        group=plan.group,
        work=work,
        seconds=seconds,
        step=step,
        fastest=min(1.0, min(whole) / step),
        slowest=max(1.0, _get_upper_decile(whole) / step),
        startup=timed.startup,
        peaks=tuple(_build_peak(plan, size) for size in timed.sizes),
    )


def build_run_measurement(plan: RunPlan, folder: Path, waited: float = 0.0) -> Measurement | None:
    """Returns what a finished run in `folder` took, without its start-up; None if it was too short.

    Args:
        plan: Its plan.
        folder: The run folder.
        waited: The share of its training in which other processes had its core.
    """
    steps = read_step_seconds(folder)[1:]
    if len(steps) < MIN_RUN_LINES:
        return None
    step = min(median(steps), (1 - waited) * mean(steps))
    logged = max(line.get("memory_gb") or 0.0 for line in read_metrics(folder))
    peak = max(round(1e9 * logged), (read_status(folder) or {}).get("peak_memory") or 0)
    size = TimedSize(plan.setting.batch.micro_batch_size, plan.work.passes, [], peak)
    return Measurement(
        kind="run",
        time=_now(),
        configuration=plan.configuration,
        group=plan.group,
        work=plan.work,
        seconds=None,
        step=step,
        fastest=min(1.0, min(steps) / step),
        slowest=_get_upper_decile(steps) / step,
        startup=None,
        peaks=(_build_peak(plan, size),) if peak else (),
    )


def read_step_seconds(folder: Path) -> list[float]:
    """Returns the seconds of a step before each line of metrics of a run, the first step first."""
    seconds = []
    tokens = step = 0
    for line in read_metrics(folder):
        if line.get("tokens_per_second") and line["step"] > step:
            seconds.append((line["tokens"] - tokens) / (line["step"] - step) / line["tokens_per_second"])
            tokens, step = line["tokens"], line["step"]
    return seconds


def format_measurement(timed: TimedPlan) -> list[str]:
    """Returns the lines that plan.measure=true adds to the plan."""
    one, count = timed.measurement, len(timed.rows)
    assert one.seconds is not None
    rows = " and ".join(map(str, timed.rows))
    peak = one.peaks[-1]
    lines = [
        f"calibration measured here: {count} {'size' if count == 1 else 'sizes'} ({rows} rows), {timed.steps} steps: "
        f"{_format_seconds(one.seconds.per_pass)} per pass + {_format_seconds(1000 * one.seconds.per_token)} per "
        f"1,000 tokens, optimizer {_format_seconds(one.seconds.optimizer)}, start-up {one.startup or 0:.1f} s; steps "
        f"took {one.fastest:.2f} to {one.slowest:.2f} of that; memory {peak.measured / 1e9:.3g} GB, planned "
        f"{peak.planned / 1e9:.3g} GB"
    ]
    if timed.waited >= NOTABLE_WAIT:
        lines.append(
            f"            other processes had the core {100 * timed.waited:.0f} % of the time, which is not counted: "
            "measure again on an idle machine"
        )
    lines.append(f"            {f'kept in {timed.file}' if timed.file else 'not kept'}")
    return lines


def compute_waited_share(timed: TimedTraining) -> float:
    """Returns the share of the time in which other processes had the core."""
    samples = [sample for size in timed.sizes for sample in size.samples]
    return 1 - sum(sample["step"] for sample in samples) / sum(sample["wall"] for sample in samples)


def _build_peak(plan: RunPlan, size: TimedSize) -> Peak:
    """Returns a measured peak beside that of the formulas; on a GPU both are without the context."""
    batch = BatchShape(size.rows, size.passes, plan.setting.batch.world_size)
    setting = replace(plan.setting, batch=batch)
    memory = plan_memory(plan.config, plan.architecture, setting, tokens=plan.tokens)
    moments = {
        name: sum(parts.values()) - (parts["context"] if plan.setting.device.kind == "cuda" else 0)
        for name, parts in memory.moments.items()
        if name in STEP_MOMENTS or not size.samples
    }
    return Peak(
        rows=size.rows,
        is_accumulating=size.passes > 1,
        planned=max(moments.values()),
        measured=size.peak,
    )


def _get_lower_quartile(values: Sequence[float]) -> float:
    return sorted(values)[(len(values) - 1) // 4]


def _get_upper_decile(values: Sequence[float]) -> float:
    return sorted(values)[round(0.9 * (len(values) - 1))]


def _format_seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
