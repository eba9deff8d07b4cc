"""The time of a step as a line in its tokens, fitted to measurements on a machine.

    seconds of a step = passes × (per pass + tokens of a pass × per token) + per step + optimizer

The part per token is work divided by speed. The work is counted in FLOPs of dense layers, in which attention and the
operations that only move bytes have a price, so that the speed of one model holds for another context, vocabulary or
optimizer; between measured sizes it is interpolated in the logarithm of the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

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

PRICES = {"cpu": (1.0, 10.0, 4.0), "cuda": (1.0, 100.0, 100.0)}
"""FLOPs of a dense layer that take as long as a FLOP of attention, as a byte of the saved activations, and as a byte
of the logits. CPU: fitted to benchmarks/results/plan_time.json; CUDA: assumed."""

PASS_LAYER_SECONDS = 1e-3
"""Seconds of a forward and backward pass for each layer, however few its tokens (assumed)."""

UPDATE_SPEED_SHARE = 0.8
"""The speed of Muon's matrix products, in the speed of the model's (assumed)."""

MIN_TOKENS_SHARE = 0.3
"""The share of a measured time that tokens, or the optimizer's matrix products, take at least."""

FAR = 4.0
"""A model that is smaller or larger than all measured ones by more than this factor is extrapolated."""

MARGINS = {"measured": (0.97, 1.05), "interpolated": (0.85, 1.2), "extrapolated": (0.7, 1.5)}
"""Factors of the shortest and the longest time, besides the spread of the measurements."""


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
    """Seconds before the first step and after the last one; None: unknown."""
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


def estimate_step(
    work: StepWork, configuration: str, bandwidth: float, measurements: Sequence[Measurement]
) -> StepEstimate:
    """Returns the time of a step of `work` by the `measurements` of its group, of which there is at least one.

    Those of the same configuration alone count for what they know.

    Args:
        work: The step.
        configuration: Its identity.
        bandwidth: Bytes per second of the device by its table, where no optimizer was measured.
        measurements: Those of its group.
    """
    fit = _Fit(measurements, configuration, bandwidth)
    size = work.parameters
    speed = fit.interpolate(size, fit.compute_speed)
    assert speed is not None
    per_layer = fit.interpolate(size, _get_layer_seconds, prefer=min)
    per_step = fit.interpolate(size, _get_step_seconds, prefer=min)
    seconds = StepSeconds(
        per_token=work.per_token / speed,
        per_pass=work.layers * (PASS_LAYER_SECONDS if per_layer is None else per_layer),
        per_step=per_step or 0.0,
        optimizer=fit.estimate_update(work, speed),
    )
    status, used = fit.find_status(size)
    speeds = [fit.compute_speed(one) for one in used]
    shortest, longest = MARGINS[status]
    return StepEstimate(
        seconds=seconds,
        speed=speed,
        fastest=min(1.0, shortest * min(speed / max(speeds), *(one.fastest for one in used))),
        slowest=max(1.0, longest * max(speed / min(speeds), *(one.slowest for one in used))),
        status=status,
        runs=len(used),
        startup=fit.interpolate(size, lambda one: one.startup, prefer=min),
    )


class _Fit:
    """The measurements of a group, as rates that hold for other sizes."""

    def __init__(self, measurements: Sequence[Measurement], configuration: str, bandwidth: float):
        self.all, self.table_bandwidth = measurements, bandwidth
        self.exact = [one for one in measurements if one.configuration == configuration]

    def find_status(self, size: int) -> tuple[str, Sequence[Measurement]]:
        """Returns how sure an estimate for `size` parameters is, and the measurements that it is from."""
        if self.exact:
            return "measured", self.exact
        sizes = [one.work.parameters for one in self.all]
        is_far = not min(sizes) / FAR < size < max(sizes) * FAR
        return "extrapolated" if is_far else "interpolated", self.all

    def interpolate(
        self,
        size: int,
        get: Callable[[Measurement], float | None],
        prefer: Callable[[list[float]], float] = max,
    ) -> float | None:
        """Returns what `get` returns at `size` parameters; None if no measurement has it.

        Of repeated measurements the better half counts: others are slow because the machine was busy.

        Args:
            size: Parameters of the model.
            get: Returns a positive figure of a measurement, or None.
            prefer: max or min, whichever is faster.
        """
        for measurements in (self.exact, self.all):
            values: dict[int, list[float]] = {}
            for one in measurements:
                if (value := get(one)) is not None:
                    values.setdefault(one.work.parameters, []).append(value)
            if values:
                best = {key: _get_better_quartile(found, prefer) for key, found in values.items()}
                return interpolate_log(best, size)
        return None

    def compute_speed(self, one: Measurement) -> float:
        """Returns the work per second of the passes of a measurement."""
        work = one.work
        if one.seconds is not None:
            return work.per_token / one.seconds.per_token
        layer = self.interpolate(work.parameters, _get_layer_seconds, prefer=min)
        fixed = work.passes * work.layers * (PASS_LAYER_SECONDS if layer is None else layer)
        moved = work.update_bytes / self._find_bandwidth(work.parameters)
        flops = work.passes * work.tokens * work.per_token + work.update_flops / UPDATE_SPEED_SHARE
        return flops / max(one.step - fixed - moved, MIN_TOKENS_SHARE * one.step)

    def estimate_update(self, work: StepWork, speed: float) -> float:
        """Returns the seconds of an optimizer step."""
        bandwidth = self._find_bandwidth(work.parameters)
        moved = work.update_bytes / bandwidth
        if not work.update_flops:
            return moved
        share = self.interpolate(work.parameters, self._compute_update_share)
        return moved + work.update_flops / ((share or UPDATE_SPEED_SHARE) * speed)

    def _find_bandwidth(self, size: int) -> float:
        """Returns the bytes per second of AdamW's update."""
        found = self.interpolate(size, _get_update_bandwidth)
        return found or self.table_bandwidth

    def _compute_update_share(self, one: Measurement) -> float | None:
        """Returns the speed of the optimizer's matrix products in that of the model's."""
        if one.seconds is None or not one.work.update_flops or not one.seconds.optimizer:
            return None
        moved = one.work.update_bytes / self._find_bandwidth(one.work.parameters)
        products = max(one.seconds.optimizer - moved, MIN_TOKENS_SHARE * one.seconds.optimizer)
        return one.work.update_flops / products / self.compute_speed(one)


def _get_layer_seconds(one: Measurement) -> float | None:
    return one.seconds.per_pass / one.work.layers if one.seconds else None


def _get_step_seconds(one: Measurement) -> float | None:
    return one.seconds.per_step if one.seconds else None


def _get_update_bandwidth(one: Measurement) -> float | None:
    if one.seconds is None or one.work.update_flops or not one.seconds.optimizer:
        return None
    return one.work.update_bytes / one.seconds.optimizer


def _get_better_quartile(values: list[float], prefer: Callable[[list[float]], float]) -> float:
    """Returns the value between the best one and the median."""
    ordered = sorted(values, reverse=prefer is max)
    return ordered[(len(ordered) - 1) // 4]
