"""Learning-rate schedules: warm-up, then constant, cosine, or stable with a final decay (WSD); and their restart.

Cosine as in Loshchilov & Hutter 2017, "SGDR"; WSD as in Hu et al. 2024, "MiniCPM", and its 1 − √progress
decay as in Hägele et al. 2024, "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations".

Steps are counted from 0. Step `warm-up − 1` is the first at the full learning rate. The decay is laid out so that no
step is wasted at a rate of zero: the step after the last one would reach `min_ratio`.

A run that continues after its decay restarts its schedule over the new steps: warmed up again as in Ibrahim et al.
2024, "Simple and Scalable Strategies to Continually Pre-train Large Language Models", at the peak at once as in SGDR,
or at the rate that it had.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from krill.config.schema import ConstantSchedulerConfig, CosineSchedulerConfig, WSDSchedulerConfig

AnySchedulerConfig = ConstantSchedulerConfig | CosineSchedulerConfig | WSDSchedulerConfig


@dataclass(frozen=True)
class Restart:
    """The step and the learning rate at which a schedule starts again."""

    kind: Literal["rewarm", "decay", "constant"]
    """rewarm: from the earlier rate up to the peak; decay: at the peak at once; constant: at the earlier rate."""
    step: int
    """The first step of the restarted schedule, counted from 0."""
    factor: float
    """The earlier learning rate as a fraction of the peak, 0 to 1."""


def compute_lr_factor(
    config: AnySchedulerConfig, step: int, total_steps: int, restart: Restart | None = None
) -> float:
    """Computes the learning rate of optimizer step `step`, as a fraction of its peak.

    Args:
        config: `warmup` and `decay` are fractions of `total_steps`, rounded to at least one step each.
        step: Counted from 0; at `total_steps` and after, the factor keeps its final value.
        total_steps: Optimizer steps of the whole run, at least 1.
        restart: The steps from `restart.step` on are a schedule of their own, of which `warmup` and `decay` are
            fractions.

    Returns:
        A factor greater than 0 in every step of the run and at most 1.

    Raises:
        ValueError: `total_steps` is less than 1.
    """
    if total_steps < 1:
        raise ValueError(f"a schedule needs at least one step, got total_steps={total_steps}")
    if restart is not None:
        return _compute_restarted_factor(config, step - restart.step, total_steps - restart.step, restart)
    warmup, decay = stable_phase(config, total_steps)
    if step < warmup:
        return (step + 1) / warmup
    if isinstance(config, ConstantSchedulerConfig):
        return 1.0
    progress = _compute_decay_progress(step, decay, total_steps)
    if isinstance(config, CosineSchedulerConfig):
        return config.min_ratio + (1 - config.min_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
    shape = 1 - math.sqrt(progress) if config.decay_shape == "sqrt" else 1 - progress
    return config.min_ratio + (1 - config.min_ratio) * shape


def _compute_restarted_factor(config: AnySchedulerConfig, step: int, steps: int, restart: Restart) -> float:
    """Computes the factor after a restart, from which `step` and `steps` are counted."""
    if restart.kind == "constant":
        return restart.factor
    factor = compute_lr_factor(config, step, steps)
    if step >= stable_phase(config, steps)[0]:
        return factor
    return 1.0 if restart.kind == "decay" else restart.factor + (1 - restart.factor) * factor


def stable_phase(
    config: AnySchedulerConfig, total_steps: int, restart: Restart | None = None
) -> tuple[int, int]:
    """Returns the number of steps after which the warm-up ends, and the number after which the decay begins.

    A run trained for a number of steps between the two, both included, can continue under another schedule as if it
    had been trained under that one. No step is between the two of a schedule that was restarted as a constant below
    its peak.
    """
    if restart is not None:
        if restart.kind == "constant":
            return (total_steps + 1, total_steps) if restart.factor < 1 else (restart.step, total_steps)
        first, last = stable_phase(config, total_steps - restart.step)
        return restart.step + first, restart.step + last
    warmup = max(1, round(config.warmup * total_steps))
    if isinstance(config, ConstantSchedulerConfig):
        return warmup, max(warmup, total_steps)
    if isinstance(config, CosineSchedulerConfig):
        return warmup, warmup
    return warmup, max(warmup, total_steps - max(1, round(config.decay * total_steps)))


def build_scheduler(
    config: AnySchedulerConfig, optimizer: Optimizer, total_steps: int, restart: Restart | None = None
) -> LambdaLR:
    """Builds a scheduler that scales the learning rate of every group, from its own peak, by `compute_lr_factor`.

    Its `state_dict` contains numbers only: the schedule itself always comes from the configuration.
    """
    return LambdaLR(optimizer, partial(compute_lr_factor, config, total_steps=total_steps, restart=restart))


def set_learning_rates(scheduler: LambdaLR, optimizer: Optimizer) -> None:
    """Sets the learning rate of each group to the rate of the scheduler's current step.

    A checkpoint restores the rates that its own schedule had planned for that step.
    """
    factors = (compute_factor(scheduler.last_epoch) for compute_factor in scheduler.lr_lambdas)
    scheduler._last_lr = [base * factor for base, factor in zip(scheduler.base_lrs, factors, strict=True)]
    for group, lr in zip(optimizer.param_groups, scheduler._last_lr, strict=True):
        group["lr"] = lr


def _compute_decay_progress(step: int, start: int, end: int) -> float:
    """Returns 0 up to the step before `start`, then a linear rise to 1 at `end`, one past the last step."""
    return min(1.0, max(0, step - start + 1) / (end - start + 1))
