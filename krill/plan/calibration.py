"""The model FLOPs utilization (MFU) that a plan assumes: measured or assumed points, interpolated by model size."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

CALIBRATION_FILE = Path(__file__).with_name("calibration.yaml")

UNCERTAINTY = {"measured": 1.0, "interpolated": 1.2, "assumed": 1.6}
"""The factor by which the range of a measured curve is wider between its points, and beyond them."""

NEAR = 1.25
"""A model whose parameters differ by less than this factor from those of a point counts as that point."""


@dataclass(frozen=True)
class Utilization:
    """An MFU, with factors of the time in which it may be wrong."""

    mfu: float
    fastest: float
    """The factor of the shortest time that is expected, at most 1."""
    slowest: float
    """The factor of the longest time that is expected, at least 1."""
    status: str
    """measured, interpolated, extrapolated, assumed or given."""
    source: str
    is_local: bool = False
    """Whether it is from measurements on this machine."""

    @property
    def text(self) -> str:
        """How sure it is, for the report."""
        return f"{self.status} {self.source}" if self.is_local else self.status


def estimate_utilization(
    kind: str, is_compiled: bool, parameters: int, given: float | None = None
) -> Utilization:
    """Returns the MFU of a model with `parameters` on a device of `kind`; `given`: the user's own."""
    if given is not None:
        return Utilization(given, 1.0, 1.0, "given", "plan.mfu")
    curve = next(
        curve for curve in _read_curves() if (curve["kind"], curve["compiled"]) == (kind, is_compiled)
    )
    sizes = sorted(curve["mfu"])
    mfu = interpolate_log(curve["mfu"], parameters)
    is_near = any(size / NEAR < parameters < size * NEAR for size in sizes)
    is_inside = sizes[0] < parameters < sizes[-1]
    status = curve["status"]
    if status == "measured" and not is_near:
        status = "interpolated" if is_inside else "assumed"
    factor = UNCERTAINTY[status] if curve["status"] == "measured" else 1.0
    fastest, slowest = curve["range"]
    return Utilization(mfu, fastest / factor, slowest * factor, status, curve["source"])


def interpolate_log(points: Mapping[int, float], size: float) -> float:
    """Returns the value at `size`, linear in the logarithm between two `points`; beyond them, the last one."""
    sizes = sorted(points)
    index = bisect_left(sizes, size)
    if index in (0, len(sizes)):
        return points[sizes[min(index, len(sizes) - 1)]]
    low, high = sizes[index - 1], sizes[index]
    weight = math.log(size / low) / math.log(high / low)
    return (1 - weight) * points[low] + weight * points[high]


@cache
def _read_curves() -> list[dict[str, Any]]:
    curves: list[dict[str, Any]] = yaml.safe_load(CALIBRATION_FILE.read_text(encoding="utf-8"))
    return curves
