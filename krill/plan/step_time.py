"""The time of a step as a line in its tokens, fitted to measurements on a machine.

    seconds of a step = passes × (per pass + tokens of a pass × per token) + per step + optimizer

The part per token is work divided by speed. The work is counted in FLOPs of dense layers, in which attention and the
operations that only move bytes have a price, so that the speed of one model holds for another context, vocabulary or
optimizer; between measured sizes it is interpolated in the logarithm of the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    FiniteFloat,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from krill.plan.calibration import interpolate_log

PRICES = {"cpu": (1.5, 10.0, 4.0), "cuda": (1.0, 100.0, 100.0)}
"""FLOPs of a dense layer that take as long as a FLOP of attention, as a byte of the saved activations, and as a byte
of the logits. CPU: fitted to 16 configurations (benchmarks/plan_time.py); CUDA: assumed."""

PASS_LAYER_SECONDS = 2e-3
"""Seconds of a forward and backward pass for each layer, however few its tokens (CPU; CUDA: assumed)."""

UPDATE_SPEED_SHARE = {"cpu": 1.1, "cuda": 0.8}
"""The speed of Muon's matrix products, in the speed of the model's. CPU: measured; CUDA: assumed."""

UNSEEN_SECONDS = {"run": 2.0, "steps": 4.5}
"""Seconds of a command that a measurement of its kind does not see. run: the start of Python and Hydra, and the end
of the process. steps: Hydra, and all that follows the last step. Measured on a CPU."""

MIN_TOKENS_SHARE = 0.3
"""The share of a measured time that tokens, or the optimizer's matrix products, take at least."""

FAR = 4.0
"""A model that is smaller or larger than all measured ones by more than this factor is extrapolated."""

MARGINS = {"measured": (0.97, 1.05), "interpolated": (0.85, 1.2), "extrapolated": (0.7, 1.5)}
"""Factors of the shortest and the longest time, besides the spread of the measurements."""

STEP_MOMENTS = frozenset({"forward", "backward", "optimizer"})
"""The moments of `krill.plan.memory` that timed steps have; others only a whole run has."""

DefaultT = TypeVar("DefaultT", float, None)
_Table = dict[int, float]
"""Parameters of a model → a positive figure."""


class _Figures(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class StepWork(_Figures):
    """What one rank computes in a step."""

    parameters: PositiveInt
    layers: PositiveInt
    tokens: PositiveInt
    """Tokens of a forward pass."""
    passes: PositiveInt
    """Forward passes of a step."""
    per_token: PositiveFloat
    """FLOPs of a token, forward and backward, with recomputed ones and the price of all other operations."""
    update_flops: NonNegativeFloat
    """FLOPs of the optimizer's matrix products."""
    update_bytes: NonNegativeInt
    """Bytes that the optimizer moves."""


class StepSeconds(_Figures):
    """The time of a step in seconds."""

    per_token: PositiveFloat
    per_pass: NonNegativeFloat
    per_step: NonNegativeFloat
    optimizer: NonNegativeFloat


class Peak(_Figures):
    """The peak memory of a micro batch in bytes: of the process on a CPU, of its tensors on a GPU."""

    rows: PositiveInt
    is_accumulating: bool
    """Whether a step had several micro batches."""
    planned: NonNegativeInt
    measured: PositiveInt


class Measurement(_Figures):
    """What steps took on a machine: those that plan.measure=true timed, or those of a finished run."""

    kind: Literal["steps", "run"]
    time: str
    configuration: str
    """Identity of what determines the time of a step, without the batch."""
    group: str
    """Device, precision, compilation, attention and ranks. Sizes are interpolated within a group."""
    work: StepWork
    seconds: StepSeconds | None
    """None: of a run, of which the whole step alone is known."""
    step: PositiveFloat
    """Seconds of a step."""
    fastest: FiniteFloat
    """The fastest step in units of `step`."""
    slowest: FiniteFloat
    """The slow end of the steps in units of `step`."""
    startup: NonNegativeFloat | None
    """Seconds besides the steps, without `UNSEEN_SECONDS`; None: unknown."""
    peaks: tuple[Peak, ...]


@dataclass(frozen=True)
class StepEstimate:
    """The time of a step by the measurements on a machine."""

    seconds: StepSeconds
    speed: float
    """Work per second, in FLOPs of dense layers."""
    fastest: float
    """The factor of the shortest time that is expected, at most 1."""
    slowest: float
    """The factor of the longest time that is expected, at least 1."""
    status: str
    """measured, interpolated or extrapolated."""
    runs: int
    """The number of measurements that it is from."""
    startup: float | None
    """Seconds before the first step and after the last one; None: unknown."""


def fit_step_seconds(sizes: Sequence[tuple[int, float]], per_step: float, optimizer: float) -> StepSeconds:
    """Returns the line through one or two sizes.

    Args:
        sizes: Tokens and seconds of a forward and backward pass, the largest size last.
        per_step: Seconds of a step besides its passes and its optimizer.
        optimizer: Seconds of an optimizer step.
    """
    (first_tokens, first_seconds), (tokens, seconds) = sizes[0], sizes[-1]
    slope = seconds / tokens
    if first_tokens != tokens:  # noise may bend the line
        rise = (seconds - first_seconds) / (tokens - first_tokens)
        slope = min(slope, max(MIN_TOKENS_SHARE * slope, rise))
    per_pass = max(0.0, seconds - slope * tokens)
    return StepSeconds(per_token=slope, per_pass=per_pass, per_step=per_step, optimizer=optimizer)


class Calibration:
    """The measurements of a group, as rates that hold for other sizes.

    Of repeated measurements of a size the better quartile counts: others are slow because the machine was busy.
    """

    def __init__(self, measurements: Sequence[Measurement], kind: str, bandwidth: float):
        """`measurements`: at least one; `kind`: cpu or cuda; `bandwidth`: bytes per second of the device."""
        self.measurements, self.table_bandwidth = measurements, bandwidth
        self.assumed_share = UPDATE_SPEED_SHARE[kind]
        self.by_configuration: dict[str, list[Measurement]] = {}
        for one in measurements:
            self.by_configuration.setdefault(one.configuration, []).append(one)

    @cached_property
    def layer_seconds(self) -> _Table:
        """Parameters → seconds of a pass for each layer, however few its tokens."""
        return _tabulate(self.measurements, _get_layer_seconds, min)

    @cached_property
    def step_seconds(self) -> _Table:
        """Parameters → seconds of a step besides passes and optimizer."""
        return _tabulate(self.measurements, _get_step_seconds, min)

    @cached_property
    def bandwidths(self) -> _Table:
        """Parameters → bytes per second of AdamW's update."""
        return _tabulate(self.measurements, _get_update_bandwidth, max)

    @cached_property
    def speeds(self) -> _Table:
        """Parameters → work per second."""
        return _tabulate(self.measurements, self.compute_speed, max)

    @cached_property
    def update_shares(self) -> _Table:
        """Parameters → speed of the optimizer's matrix products, in that of the model's."""
        return _tabulate(self.measurements, self._compute_update_share, max)

    @cached_property
    def startups(self) -> _Table:
        """Parameters → seconds before the first step and after the last one."""
        runs = [one for one in self.measurements if one.kind == "run" and one.startup is not None]
        return _tabulate(runs or self.measurements, _get_startup_seconds, min)

    def compute_speed(self, one: Measurement) -> float:
        """Returns the work per second of the passes of a measurement."""
        work = one.work
        if one.seconds is not None:
            return work.per_token / one.seconds.per_token
        layer = _look_up(self.layer_seconds, work.parameters, PASS_LAYER_SECONDS)
        moved = work.update_bytes / self.get_bandwidth(work.parameters)
        flops = work.passes * work.tokens * work.per_token + work.update_flops / self.assumed_share
        rest = one.step - work.passes * work.layers * layer - moved
        return flops / max(rest, MIN_TOKENS_SHARE * one.step)

    def get_bandwidth(self, size: int) -> float:
        """Returns the bytes per second of AdamW's update of a model of `size` parameters."""
        return _look_up(self.bandwidths, size, self.table_bandwidth)

    def _compute_update_share(self, one: Measurement) -> float | None:
        if one.seconds is None or not one.work.update_flops or not one.seconds.optimizer:
            return None
        moved = one.work.update_bytes / self.get_bandwidth(one.work.parameters)
        products = max(one.seconds.optimizer - moved, MIN_TOKENS_SHARE * one.seconds.optimizer)
        return one.work.update_flops / products / self.compute_speed(one)


def estimate_step(work: StepWork, configuration: str, calibration: Calibration) -> StepEstimate:
    """Returns the time of a step of `work` by the measurements of its group.

    What was measured of the same configuration counts alone; what was not, comes from the others.

    Args:
        work: The step.
        configuration: Its identity.
        calibration: The measurements of its group.
    """
    size, exact = work.parameters, calibration.by_configuration.get(configuration, [])
    speeds = _tabulate(exact, calibration.compute_speed, max) or calibration.speeds
    speed = _look_up(speeds, size, 0.0)
    layer = _tabulate(exact, _get_layer_seconds, min) or calibration.layer_seconds
    rest = _tabulate(exact, _get_step_seconds, min) or calibration.step_seconds
    update = work.update_bytes / calibration.get_bandwidth(size)
    if work.update_flops:
        share = _look_up(calibration.update_shares, size, calibration.assumed_share)
        update += work.update_flops / (share * speed)
    optimizer = _look_up(_tabulate(exact, _get_optimizer_seconds, min), size, update)
    seconds = StepSeconds(
        per_token=work.per_token / speed,
        per_pass=work.layers * _look_up(layer, size, PASS_LAYER_SECONDS),
        per_step=_look_up(rest, size, 0.0),
        optimizer=optimizer,
    )
    used = exact or calibration.measurements
    status = "measured" if exact else _find_status(size, used)
    found = [calibration.compute_speed(one) for one in used] if exact else list(speeds.values())
    shortest, longest = MARGINS[status]
    startups = _tabulate([one for one in exact if one.kind == "run"], _get_startup_seconds, min)
    return StepEstimate(
        seconds=seconds,
        speed=speed,
        fastest=min(1.0, shortest * min(speed / max(found), *(one.fastest for one in used))),
        slowest=max(1.0, longest * max(speed / min(found), *(one.slowest for one in used))),
        status=status,
        runs=len(used),
        startup=_look_up(startups or calibration.startups, size, None),
    )


def _tabulate(
    measurements: Sequence[Measurement],
    get: Callable[[Measurement], float | None],
    prefer: Callable[[list[float]], float],
) -> _Table:
    """Returns the better quartile of what `get` returns at each size; `prefer`: max or min, whichever is faster."""
    values: dict[int, list[float]] = {}
    for one in measurements:
        if (value := get(one)) is not None:
            values.setdefault(one.work.parameters, []).append(value)
    return {
        size: sorted(found, reverse=prefer is max)[(len(found) - 1) // 4] for size, found in values.items()
    }


def _look_up(table: _Table, size: int, default: DefaultT) -> float | DefaultT:
    """Returns the figure at `size`, interpolated; `default` if there is none."""
    return interpolate_log(table, size) if table else default


def _find_status(size: int, measurements: Sequence[Measurement]) -> str:
    sizes = [one.work.parameters for one in measurements]
    is_far = not min(sizes) / FAR < size < max(sizes) * FAR
    return "extrapolated" if is_far else "interpolated"


def _get_layer_seconds(one: Measurement) -> float | None:
    return one.seconds.per_pass / one.work.layers if one.seconds else None


def _get_step_seconds(one: Measurement) -> float | None:
    return one.seconds.per_step if one.seconds else None


def _get_startup_seconds(one: Measurement) -> float | None:
    return None if one.startup is None else one.startup + UNSEEN_SECONDS[one.kind]


def _get_optimizer_seconds(one: Measurement) -> float | None:
    return one.seconds.optimizer if one.seconds else None


def _get_update_bandwidth(one: Measurement) -> float | None:
    if one.seconds is None or one.work.update_flops or not one.seconds.optimizer:
        return None
    return one.work.update_bytes / one.seconds.optimizer
