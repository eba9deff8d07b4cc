"""Skips bad steps: those whose loss or gradients are not finite, or spike above the previous ones.

The device decides whether a step is bad and masks out its update (`krill.optim.skip_mask`): weights and optimizer
state stay unchanged. The host reads the decision only when a line of metrics is written, and does not wait for it
before. A spike is a loss or a gradient norm more than `skip_step.spike` standard deviations above the mean of the
last 128 good steps, once there are 64 (SkipStepOptimizer of OLMo-core).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from krill.config.schema import SkipStepConfig
from krill.errors import KrillError

DIVERGED_MESSAGE = "the training has diverged, and more steps do not help"
SPIKE_WINDOW = 128
MIN_GOOD_STEPS = SPIKE_WINDOW // 2


class DivergenceError(KrillError):
    """The training has diverged."""


class BadStep(NamedTuple):
    """A step that was skipped."""

    step: int
    loss: float
    """The loss over the step's rows, nats per token."""
    grad_norm: float
    """The gradient norm before clipping."""
    reason: str
    consecutive: int
    """The number of consecutive bad steps up to and including this one."""


class BadStepDetector:
    """Detects bad steps. Its state stays on the device until it is read."""

    def __init__(self, config: SkipStepConfig, device: torch.device):
        self.config = config
        self.history = torch.zeros(2, SPIKE_WINDOW, device=device)
        """Loss and gradient norm of the last good steps, a ring buffer."""
        self.num_good_steps = torch.zeros((), dtype=torch.int64, device=device)
        """The number of good steps so far."""
        self.unread_steps: list[Tensor] = []
        """For each step since the last read: whether it is bad, its loss and norm, and the limit of each."""
        self.consecutive_bad_steps = 0
        """The number of consecutive bad steps at the last read."""
        self.step_loss = torch.zeros((), device=device)
        """The loss of the current step, accumulated over its forward passes."""
        self.is_bad = torch.zeros((), device=device)
        """Whether the last step was bad; fp32, 1 or 0."""

    def add_loss(self, loss: Tensor) -> None:
        """Adds the loss of one forward pass, 0-D, scaled to its share of the step."""
        self.step_loss = self.step_loss + loss

    def check_step(self, grad_norm: Tensor) -> Tensor:
        """Returns whether the step of the added losses is bad; 0-D fp32, 1 or 0, the same on every rank.

        `grad_norm`: the total norm of all gradients before clipping, 0-D.
        """
        norm = grad_norm.full_tensor() if isinstance(grad_norm, DTensor) else grad_norm
        values = _all_reduce_mean(torch.stack([self.step_loss, norm.to(self.step_loss)]))
        limits = self._compute_limits()
        is_good = (values.isfinite() & (values <= limits)).all()
        if self.config.spike is not None:
            is_slot = torch.arange(SPIKE_WINDOW, device=values.device) == self.num_good_steps % SPIKE_WINDOW
            self.history = torch.where(is_slot & is_good, values[:, None], self.history)
        self.num_good_steps = self.num_good_steps + is_good
        self.step_loss = torch.zeros_like(self.step_loss)
        self.is_bad = (~is_good).float()
        self.unread_steps.append(torch.cat([self.is_bad[None], values, limits]))
        return self.is_bad

    def _compute_limits(self) -> Tensor:
        """Returns the largest loss and gradient norm of a good step; fp32 (2,)."""
        if self.config.spike is None:
            return torch.full((2,), math.inf, device=self.history.device)
        count = self.num_good_steps.clamp(max=SPIKE_WINDOW)
        is_filled = torch.arange(SPIKE_WINDOW, device=count.device) < count
        mean = torch.where(is_filled, self.history, 0.0).sum(1) / count
        squares = torch.where(is_filled, (self.history - mean[:, None]).square(), 0.0)
        deviation = (squares.sum(1) / (count - 1)).sqrt()
        return torch.where(count < MIN_GOOD_STEPS, math.inf, mean + self.config.spike * deviation)

    def read_bad_steps(self, step: int) -> tuple[list[BadStep], int]:
        """Returns the bad steps since the last read, and the number of steps since then; the last one is `step`."""
        rows = torch.stack(self.unread_steps).tolist() if self.unread_steps else []
        self.unread_steps = []
        bad_steps = []
        for number, (is_bad, loss, norm, *limits) in enumerate(rows, start=step + 1 - len(rows)):
            self.consecutive_bad_steps = self.consecutive_bad_steps + 1 if is_bad else 0
            if is_bad:
                reason = _explain_bad_step(loss, norm, *limits)
                bad_steps.append(BadStep(number, loss, norm, reason, self.consecutive_bad_steps))
        return bad_steps, len(rows)

    def raise_if_diverged(self, bad_steps: list[BadStep], remedy: str) -> None:
        """Raises DivergenceError, with `remedy` in its message, if one of the bad steps must end the run."""
        for step in bad_steps:
            is_finite = math.isfinite(step.loss) and math.isfinite(step.grad_norm)
            if step.consecutive >= self.config.max_skips or (self.config.nan == "stop" and not is_finite):
                streak = f", bad step {step.consecutive} in a row" if step.consecutive > 1 else ""
                raise DivergenceError(
                    f"{step.reason} at step {step.step}{streak}: {DIVERGED_MESSAGE}; {remedy}. No bad step has "
                    "changed the weights: the checkpoints hold the last good ones"
                )

    def state_dict(self) -> dict[str, Any]:
        """Returns the state that a resumed run needs for the same decisions and the same report."""
        return {
            "values": self.history,
            "good": self.num_good_steps,
            "unread": self.unread_steps,
            "in_a_row": self.consecutive_bad_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Loads a state returned by `state_dict`."""
        device = self.history.device
        self.history, self.num_good_steps = state["values"].to(device), state["good"].to(device)
        self.unread_steps = [row.to(device) for row in state["unread"]]
        self.consecutive_bad_steps = state["in_a_row"]


def suggest_divergence_remedy(lr: float) -> str:
    """Returns the overrides to try for a training run that has diverged, as text."""
    return f"set lr= below {lr:g}, or raise scheduler.warmup"


def _all_reduce_mean(values: Tensor) -> Tensor:
    """Returns the mean over ranks; a value that is not finite on one rank is not finite on any."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values


def _explain_bad_step(loss: float, norm: float, max_loss: float, max_norm: float) -> str:
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if not math.isfinite(norm):
        return f"the gradient norm is {norm}"
    if loss > max_loss:
        return f"the loss is {loss:.4f}, above {max_loss:.4f}"
    return f"the gradient norm is {norm:.4f}, above {max_norm:.4f}"
