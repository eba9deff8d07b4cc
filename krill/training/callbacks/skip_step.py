"""Keeps bad steps out of a training: their loss or gradients are not finite, or stand out from those before.

Whether a step is bad is decided on the device, and its update is masked out there (`krill.optim.skip_mask`): weights
and the optimizer's state stay as they were. The host learns of it when a line of metrics is written, and does not
wait before. A spike is a loss or a gradient norm more than `skip_step.spike` standard deviations above the mean of the
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

DIVERGED_MESSAGE = "the training has diverged, and more steps do not mend it"
SPIKE_WINDOW = 128
MIN_GOOD_STEPS = SPIKE_WINDOW // 2


class BadStep(NamedTuple):
    """A step that was left out."""

    step: int
    loss: float
    """Of the step's rows, nats per token."""
    grad_norm: float
    """Before clipping."""
    reason: str
    consecutive: int
    """How many bad steps there were in a row, up to this one."""


class BadStepDetector:
    """Judges one step after the other. Everything that it holds is on the device until it is read."""

    def __init__(self, rules: SkipStepConfig, device: torch.device):
        self.config = rules
        self.history = torch.zeros(2, SPIKE_WINDOW, device=device)
        """Loss and gradient norm of the last good steps, in a ring."""
        self.num_good_steps = torch.zeros((), dtype=torch.int64, device=device)
        """How many good steps there were."""
        self.unread_steps: list[Tensor] = []
        """Of each step since the last reading: whether it is bad, loss and norm, and what each may be at most."""
        self.consecutive_bad_steps = 0
        """Bad steps up to the last reading."""
        self.step_loss = torch.zeros((), device=device)
        """Of the step that is being computed, so far."""
        self.is_bad = torch.zeros((), device=device)
        """Whether the last step was bad; fp32, 1 or 0."""

    def add_loss(self, loss: Tensor) -> None:
        """The loss of one forward pass, 0-D: its share of the step's."""
        self.step_loss = self.step_loss + loss

    def check_step(self, grad_norm: Tensor) -> Tensor:
        """Whether the step whose passes were added is bad; 0-D fp32, 1 or 0, the same on every rank.

        `grad_norm`: of all gradients together, before clipping, 0-D.
        """
        norm = grad_norm.full_tensor() if isinstance(grad_norm, DTensor) else grad_norm
        now = _all_reduce_mean(torch.stack([self.step_loss, norm.to(self.step_loss)]))
        limits = self._compute_limits()
        is_good = (now.isfinite() & (now <= limits)).all()
        if self.config.spike is not None:
            place = torch.arange(SPIKE_WINDOW, device=now.device) == self.num_good_steps % SPIKE_WINDOW
            self.history = torch.where(place & is_good, now[:, None], self.history)
        self.num_good_steps = self.num_good_steps + is_good
        self.step_loss = torch.zeros_like(self.step_loss)
        self.is_bad = (~is_good).float()
        self.unread_steps.append(torch.cat([self.is_bad[None], now, limits]))
        return self.is_bad

    def _compute_limits(self) -> Tensor:
        """What loss and gradient norm may be at most; fp32 (2,)."""
        if self.config.spike is None:
            return torch.full((2,), math.inf, device=self.history.device)
        count = self.num_good_steps.clamp(max=SPIKE_WINDOW)
        is_filled = torch.arange(SPIKE_WINDOW, device=count.device) < count
        mean = torch.where(is_filled, self.history, 0.0).sum(1) / count
        squares = torch.where(is_filled, (self.history - mean[:, None]).square(), 0.0)
        deviation = (squares.sum(1) / (count - 1)).sqrt()
        return torch.where(count < MIN_GOOD_STEPS, math.inf, mean + self.config.spike * deviation)

    def read_bad_steps(self, step: int) -> tuple[list[BadStep], int]:
        """The bad steps since the last reading, and how many steps there were; the last of them is `step`."""
        rows = torch.stack(self.unread_steps).tolist() if self.unread_steps else []
        self.unread_steps = []
        bad = []
        for number, (is_bad, loss, norm, *limits) in enumerate(rows, start=step + 1 - len(rows)):
            self.consecutive_bad_steps = self.consecutive_bad_steps + 1 if is_bad else 0
            if is_bad:
                bad.append(
                    BadStep(
                        number, loss, norm, _explain_bad_step(loss, norm, *limits), self.consecutive_bad_steps
                    )
                )
        return bad, len(rows)

    def raise_if_diverged(self, bad: list[BadStep], remedy: str) -> None:
        """Raise KrillError, which says `remedy`, if one of the bad steps of a reading is to end the run."""
        for step in bad:
            is_finite = math.isfinite(step.loss) and math.isfinite(step.grad_norm)
            if step.consecutive >= self.config.max_skips or (self.config.nan == "stop" and not is_finite):
                which = f", bad step {step.consecutive} in a row" if step.consecutive > 1 else ""
                raise KrillError(
                    f"{step.reason} at step {step.step}{which}: {DIVERGED_MESSAGE}; {remedy}. No bad step has changed the "
                    "weights: the checkpoints hold the last good ones"
                )

    def state_dict(self) -> dict[str, Any]:
        """What a run needs to go on with the same decisions and the same report."""
        return {
            "values": self.history,
            "good": self.num_good_steps,
            "unread": self.unread_steps,
            "in_a_row": self.consecutive_bad_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as `state_dict` says."""
        device = self.history.device
        self.history, self.num_good_steps = state["values"].to(device), state["good"].to(device)
        self.unread_steps = [row.to(device) for row in state["unread"]]
        self.consecutive_bad_steps = state["in_a_row"]


def suggest_divergence_remedy(lr: float) -> str:
    """What to write for a training that has diverged."""
    return f"lower lr={lr:g}, or raise scheduler.warmup"


def _all_reduce_mean(values: Tensor) -> Tensor:
    """The mean over ranks; what is not finite on one rank is not on any."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values


def _explain_bad_step(loss: float, norm: float, most_loss: float, most_norm: float) -> str:
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if not math.isfinite(norm):
        return f"the gradient norm is {norm}"
    if loss > most_loss:
        return f"the loss is {loss:.4f}, above {most_loss:.4f}"
    return f"the gradient norm is {norm:.4f}, above {most_norm:.4f}"
