"""Learning-rate schedules: warm-up, then constant, cosine, or stable and decay (WSD).

Cosine as in Loshchilov & Hutter 2017, "SGDR"; WSD as in Hu et al. 2024, "MiniCPM", and its 1 − √progress
decay as in Hägele et al. 2024, "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations".

Steps count from 0. Step `warm-up − 1` is the first at the full rate. The falling part is laid out so that no
step is wasted at a rate of zero: `min_ratio` is where the step after the last one would be.
"""

from __future__ import annotations

import math
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from krill.config.schema import ConstantSchedulerConfig, CosineSchedulerConfig, WSDSchedulerConfig


def compute_lr_factor(
    config: ConstantSchedulerConfig | CosineSchedulerConfig | WSDSchedulerConfig, step: int, total_steps: int
) -> float:
    """The share of its peak that the learning rate has in optimizer step `step` of `total_steps`.

    Args:
        config: Its `warmup` and `decay` are shares of `total_steps`, rounded, and at least one step each.
        step: From 0; from `total_steps` on, the value stays what the schedule ends with.
        total_steps: Optimizer steps of the whole run, at least 1.

    Returns:
        More than 0 in every step of the run, at most 1.

    Raises:
        ValueError: `total_steps` is less than 1.
    """
    if total_steps < 1:
        raise ValueError(f"a schedule needs at least one step, got total_steps={total_steps}")
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


def stable_phase(
    config: ConstantSchedulerConfig | CosineSchedulerConfig | WSDSchedulerConfig, total_steps: int
) -> tuple[int, int]:
    """After how many steps the warm-up is over, and after how many the rate begins to fall.

    What was trained for a number of steps between the two, both included, can go on under another schedule as if it
    had been trained under that one.
    """
    warmup = max(1, round(config.warmup * total_steps))
    if isinstance(config, ConstantSchedulerConfig):
        return warmup, max(warmup, total_steps)
    if isinstance(config, CosineSchedulerConfig):
        return warmup, warmup
    return warmup, max(warmup, total_steps - max(1, round(config.decay * total_steps)))


def build_scheduler(
    config: ConstantSchedulerConfig | CosineSchedulerConfig | WSDSchedulerConfig,
    optimizer: Optimizer,
    total_steps: int,
) -> LambdaLR:
    """Scales the rate of every group by `compute_lr_factor`, each from its own peak.

    Its `state_dict` holds numbers only: the schedule itself always comes from the configuration.
    """
    return LambdaLR(optimizer, partial(compute_lr_factor, config, total_steps=total_steps))


def set_learning_rates(scheduler: LambdaLR, optimizer: Optimizer) -> None:
    """Give each group the rate of the step that `scheduler` has come to.

    A checkpoint brings the rates that its own schedule had planned for that step.
    """
    shares = (share(scheduler.last_epoch) for share in scheduler.lr_lambdas)
    scheduler._last_lr = [base * share for base, share in zip(scheduler.base_lrs, shares, strict=True)]
    for group, rate in zip(optimizer.param_groups, scheduler._last_lr, strict=True):
        group["lr"] = rate


def _compute_decay_progress(step: int, start: int, end: int) -> float:
    """0 up to the step before `start`, then rising evenly to 1 at `end`, which is one past the last step."""
    return min(1.0, max(0, step - start + 1) / (end - start + 1))
