"""Keeps bad steps out of a training: their loss or gradients are not finite, or stand out from those before.

Whether a step is bad is decided on the device, and its update is masked out there (`krill.optim.masking`): weights
and the optimizer's state stay as they were. The host learns of it when a line of metrics is written, and does not
wait before. A spike is a loss or a gradient norm more than `guard.spike` standard deviations above the mean of the
last 128 good steps, once there are 64 (SkipStepOptimizer of OLMo-core).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from krill.config.schema import Guard
from krill.errors import KrillError

DIVERGED = "the training has diverged, and more steps do not mend it"
WINDOW = 128
ENOUGH = WINDOW // 2


class BadStep(NamedTuple):
    """A step that was left out."""

    step: int
    loss: float
    """Of the step's rows, nats per token."""
    grad_norm: float
    """Before clipping."""
    reason: str
    in_a_row: int
    """How many bad steps there were in a row, up to this one."""


class StepGuard:
    """Judges one step after the other. Everything that it holds is on the device until it is read."""

    def __init__(self, rules: Guard, device: torch.device):
        self.rules = rules
        self.values = torch.zeros(2, WINDOW, device=device)
        """Loss and gradient norm of the last good steps, in a ring."""
        self.good = torch.zeros((), dtype=torch.int64, device=device)
        """How many good steps there were."""
        self.unread: list[Tensor] = []
        """Of each step since the last reading: whether it is bad, loss and norm, and what each may be at most."""
        self.in_a_row = 0
        """Bad steps up to the last reading."""
        self.loss = torch.zeros((), device=device)
        """Of the step that is being computed, so far."""
        self.is_bad = torch.zeros((), device=device)
        """Whether the last step was bad; fp32, 1 or 0."""

    def add(self, loss: Tensor) -> None:
        """The loss of one forward pass, 0-D: its share of the step's."""
        self.loss = self.loss + loss

    def judge(self, grad_norm: Tensor) -> Tensor:
        """Whether the step whose passes were added is bad; 0-D fp32, 1 or 0, the same on every rank.

        `grad_norm`: of all gradients together, before clipping, 0-D.
        """
        norm = grad_norm.full_tensor() if isinstance(grad_norm, DTensor) else grad_norm
        now = _of_all_ranks(torch.stack([self.loss, norm.to(self.loss)]))
        limits = self._limits()
        is_good = (now.isfinite() & (now <= limits)).all()
        if self.rules.spike is not None:
            place = torch.arange(WINDOW, device=now.device) == self.good % WINDOW
            self.values = torch.where(place & is_good, now[:, None], self.values)
        self.good = self.good + is_good
        self.loss = torch.zeros_like(self.loss)
        self.is_bad = (~is_good).float()
        self.unread.append(torch.cat([self.is_bad[None], now, limits]))
        return self.is_bad

    def _limits(self) -> Tensor:
        """What loss and gradient norm may be at most; fp32 (2,)."""
        if self.rules.spike is None:
            return torch.full((2,), math.inf, device=self.values.device)
        count = self.good.clamp(max=WINDOW)
        is_filled = torch.arange(WINDOW, device=count.device) < count
        mean = torch.where(is_filled, self.values, 0.0).sum(1) / count
        squares = torch.where(is_filled, (self.values - mean[:, None]).square(), 0.0)
        deviation = (squares.sum(1) / (count - 1)).sqrt()
        return torch.where(count < ENOUGH, math.inf, mean + self.rules.spike * deviation)

    def read(self, step: int) -> tuple[list[BadStep], int]:
        """The bad steps since the last reading, and how many steps there were; the last of them is `step`."""
        rows = torch.stack(self.unread).tolist() if self.unread else []
        self.unread = []
        bad = []
        for number, (is_bad, loss, norm, *limits) in enumerate(rows, start=step + 1 - len(rows)):
            self.in_a_row = self.in_a_row + 1 if is_bad else 0
            if is_bad:
                bad.append(BadStep(number, loss, norm, _reason(loss, norm, *limits), self.in_a_row))
        return bad, len(rows)

    def demand_health(self, bad: list[BadStep], remedy: str) -> None:
        """Raise KrillError, which says `remedy`, if one of the bad steps of a reading is to end the run."""
        for step in bad:
            is_finite = math.isfinite(step.loss) and math.isfinite(step.grad_norm)
            if step.in_a_row >= self.rules.max_skips or (self.rules.nan == "stop" and not is_finite):
                which = f", bad step {step.in_a_row} in a row" if step.in_a_row > 1 else ""
                raise KrillError(
                    f"{step.reason} at step {step.step}{which}: {DIVERGED}; {remedy}. No bad step has changed the "
                    "weights: the checkpoints hold the last good ones"
                )

    def state_dict(self) -> dict[str, Any]:
        """What a run needs to go on with the same decisions and the same report."""
        return {
            "values": self.values,
            "good": self.good,
            "unread": self.unread,
            "in_a_row": self.in_a_row,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as `state_dict` says."""
        device = self.values.device
        self.values, self.good = state["values"].to(device), state["good"].to(device)
        self.unread = [row.to(device) for row in state["unread"]]
        self.in_a_row = state["in_a_row"]


def advice(lr: float) -> str:
    """What to write for a training that has diverged."""
    return f"lower lr={lr:g}, or raise scheduler.warmup"


def _of_all_ranks(values: Tensor) -> Tensor:
    """The mean over ranks; what is not finite on one rank is not on any."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values


def _reason(loss: float, norm: float, most_loss: float, most_norm: float) -> str:
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if not math.isfinite(norm):
        return f"the gradient norm is {norm}"
    if loss > most_loss:
        return f"the loss is {loss:.4f}, above {most_loss:.4f}"
    return f"the gradient norm is {norm:.4f}, above {most_norm:.4f}"
