"""Compares the plan of a run, which its status.json holds, with what the run took, and the plans of all runs."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from krill.runs.find import Run
from krill.runs.json_lines import read_metrics
from krill.runs.record import read_status


@dataclass(frozen=True)
class PlanRecord:
    """Seconds and bytes, planned and taken, without the preparation of the tokens.

    The memory of a GPU is that of its tensors, without the CUDA context.
    """

    planned_seconds: float
    seconds: float
    planned_memory: int
    memory: int

    @property
    def time_ratio(self) -> float:
        """The planned time divided by that which the run took."""
        return self.planned_seconds / self.seconds

    @property
    def memory_ratio(self) -> float:
        """The planned memory divided by that which the run took."""
        return self.planned_memory / self.memory

    def __str__(self) -> str:
        return (
            f"{format_time(self.planned_seconds)} and {self.planned_memory / 1e9:.3g} GB of memory; "
            f"took {format_time(self.seconds)} and {self.memory / 1e9:.3g} GB"
        )

    def to_json(self) -> dict[str, float]:
        """Returns the figures and their ratios."""
        ratios = {"time_ratio": round(self.time_ratio, 3), "memory_ratio": round(self.memory_ratio, 3)}
        return asdict(self) | ratios


@dataclass(frozen=True)
class PlannedRun:
    """A run with its plan and what it took."""

    folder: Path
    device: str
    record: PlanRecord


@dataclass(frozen=True)
class PlanStatistics:
    """The comparable runs, and how many others there are of each kind."""

    runs: list[PlannedRun]
    left_out: dict[str, int]
    """Why they are not comparable → how many."""

    def summarize(self) -> dict[str, dict[str, float]]:
        """Returns the smallest, the middle and the largest ratio of plan to truth, of time and memory."""
        ratios = {
            "time": [run.record.time_ratio for run in self.runs],
            "memory": [run.record.memory_ratio for run in self.runs],
        }
        return {
            name: {
                "min": round(min(values), 3),
                "median": round(statistics.median(values), 3),
                "max": round(max(values), 3),
            }
            for name, values in ratios.items()
            if values
        }

    def to_json(self) -> dict[str, Any]:
        """Returns the ratios, the runs, and how many were left out."""
        return {
            "ratio": self.summarize(),
            "runs": [
                {"folder": str(run.folder), "device": run.device, **run.record.to_json()} for run in self.runs
            ],
            "left_out": self.left_out,
        }


def collect_plan_records(runs: Sequence[Run]) -> PlanStatistics:
    """Returns plan and truth of the training runs among `runs` that are comparable."""
    planned, left_out = [], Counter[str]()
    for run in runs:
        status = run.status or {}
        if status.get("command", "train") != "train" or run.sweep_entry.get("command", "train") != "train":
            continue
        if reason := find_obstacle(status):
            left_out[reason] += 1
        elif record := read_plan_record(run.folder):
            planned.append(PlannedRun(run.folder, str(status["plan"].get("device")), record))
        else:
            left_out["without a time or a memory"] += 1
    return PlanStatistics(planned, dict(left_out))


def find_obstacle(status: dict[str, Any]) -> str | None:
    """Returns why the plan of a run is not comparable with what it took; None: it is."""
    if status.get("state") != "finished":
        return "not finished"
    if not status.get("plan"):
        return "without a plan"
    if (status.get("starts") or 1) > 1:  # some steps were done twice, perhaps on different machines
        return "resumed"
    if (status.get("metrics") or {}).get("stopped_by"):
        return "stopped early"
    return None


def read_plan_record(folder: Path) -> PlanRecord | None:
    """Returns plan and truth of a run; None without a plan, or before its first logged step."""
    status = read_status(folder) or {}
    plan = status.get("plan")
    seconds = status.get("command_seconds") or status.get("seconds")  # a resumed run is several commands
    peaks = [line["memory_gb"] for line in read_metrics(folder) if line.get("memory_gb") is not None]
    if not plan or not plan.get("seconds") or not seconds or not peaks:
        return None
    try:
        memory = plan["memory"]
        context = 0 if plan["device"] == "cpu" else memory["moments"][memory["peak"]]["context"]
        planned_seconds, planned_memory = plan["seconds"]["total"], memory["total"] - context
    except (KeyError, TypeError):  # edited, or by another version
        return None
    taken = max(round(1e9 * max(peaks)), status.get("peak_memory") or 0)
    preparation = status.get("preparation_seconds") or 0.0
    return PlanRecord(planned_seconds, max(0.1, seconds - preparation), planned_memory, taken)


def format_time(seconds: float) -> str:
    """Formats a time as hours and minutes, or as minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_rest = divmod(minutes, 60)
    return f"{hours}:{minutes_rest:02} h" if hours else f"{minutes}:{rest:02} min"
