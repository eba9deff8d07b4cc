"""The configuration of krill-plan."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from krill.config.number_limits import MAX_FLOAT
from krill.config.schema.base import Processes, Section
from krill.config.schema.run import TrainConfig

BUDGET_UNITS = {"m": 60, "h": 3600, "d": 86400}
"""Unit of a budget of time → seconds."""


class PlanOptionsConfig(Section):
    """The devices that a run is planned for, and what they cost."""

    device: str | None
    """Device of krill's table, such as h100, a100 or l4, or of plan.devices; null: that of this machine."""
    count: Processes | None
    """Number of devices, over all nodes, each with one rank; null: the ranks of hardware."""
    devices: str | None
    """YAML file with devices of your own, in the form of krill's table; null: none."""
    price_per_hour: Annotated[float, Field(gt=0.0, le=MAX_FLOAT)] | None
    """Price of one device for an hour, in any currency; null: no costs are computed."""
    mfu: Annotated[float, Field(gt=0.0, le=1.0)] | None
    """Model FLOPs utilization to plan with, such as 0.4; null: that of the calibration."""
    measure: bool
    """Run a few steps here at two micro batch sizes, correct the plan by them, and keep their figures for later plans
    on this machine."""


class PlanConfig(TrainConfig):
    """What a run of krill-train with the same arguments will need: parameters, FLOPs, memory, disk, time and money,
    whether it fits, and what to change. Nothing is written, except for what plan.measure keeps."""

    dry_run: Literal[True]
    """Always true: a plan writes nothing."""
    budget: str | None
    """FLOPs (1e19) or hours of the devices (8h, 90m, 2d) to propose a model and its length for; null: plan the
    configured run."""
    format: Literal["text", "json"]
    """text: a report for reading. json: all figures, for scripts."""
    plan: PlanOptionsConfig

    @field_validator("budget")
    @classmethod
    def _check_budget(cls, value: str | None) -> str | None:
        if value is not None:
            parse_budget(value)
        return value


def parse_budget(text: str) -> tuple[float, str]:
    """Returns the amount and its unit: FLOPs ("flops") or seconds ("seconds").

    Raises ValueError for a budget that is neither, or not positive.
    """
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([mhd])", text):
        amount, unit = float(match[1]) * BUDGET_UNITS[match[2]], "seconds"
    else:
        try:
            amount, unit = float(text), "flops"
        except ValueError:
            raise ValueError(
                f"{text!r} is neither FLOPs nor a time; use budget=1e19, 90m, 8h or 2d"
            ) from None
    if not 0 < amount < MAX_FLOAT:
        raise ValueError(f"{text!r} is not a budget; use budget=1e19, 90m, 8h or 2d")
    return amount, unit
