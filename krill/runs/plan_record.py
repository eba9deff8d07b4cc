"""Compares the plan of a run, which its status.json holds, with what the run took."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from krill.runs.json_lines import read_metrics
from krill.runs.record import read_status


@dataclass(frozen=True)
class PlanRecord:
    """Seconds and bytes, planned and taken. The memory of a GPU is that of its tensors, without the CUDA context."""

    planned_seconds: float
    seconds: float
    planned_memory: int
    memory: int

    def __str__(self) -> str:
        return (
            f"planned     {_format_time(self.planned_seconds)} and {self.planned_memory / 1e9:.3g} GB of memory; "
            f"took {_format_time(self.seconds)} and {self.memory / 1e9:.3g} GB"
        )


def read_plan_record(folder: Path) -> PlanRecord | None:
    """Returns plan and truth of a run; None without a plan, or before its first logged step."""
    status = read_status(folder) or {}
    plan, seconds = status.get("plan"), status.get("seconds")
    peaks = [line["memory_gb"] for line in read_metrics(folder) if line.get("memory_gb") is not None]
    if not plan or not plan.get("seconds") or not seconds or not peaks:
        return None
    memory = plan["memory"]
    context = 0 if plan["device"] == "cpu" else memory["moments"][memory["peak"]]["context"]
    return PlanRecord(plan["seconds"]["total"], seconds, memory["total"] - context, round(1e9 * max(peaks)))


def _format_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_rest = divmod(minutes, 60)
    return f"{hours}:{minutes_rest:02} h" if hours else f"{minutes}:{rest:02} min"
