"""Computes from the logged losses of a run how fast they fell at its end, and whether they rose before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import NamedTuple

RISE = 0.005
"""A validation loss that is higher than the lowest one by this share has risen."""
DIVERGENCE, DIVERGENCE_ERRORS = 0.05, 4.0
"""A training loss that is higher than before by this share and by this number of standard errors has risen."""
MIN_LINES = 3
"""Number of lines of metrics in a tenth of the steps, from which their training loss has a standard error."""


class LoggedLoss(NamedTuple):
    """A loss in metrics.jsonl, in nats per token."""

    step: int
    loss: float


@dataclass(frozen=True)
class LossCurve:
    """The losses of the steps after `start` up to `end`, in order."""

    start: int
    end: int
    losses: Sequence[LoggedLoss]

    @property
    def tenth(self) -> float:
        """A tenth of the steps."""
        return (self.end - self.start) / 10

    def compute_mean(self, tenth: int) -> float | None:
        """Returns the mean loss in one of the ten tenths of the steps, 0 to 9; None without a line there."""
        losses = self._select(tenth)
        return fmean(losses) if losses else None

    def compute_mean_after(self, step: int) -> float | None:
        """Returns the mean loss of the tenth of the steps that follows `step`; None without a line there."""
        losses = [loss for at, loss in self.losses if step < at <= step + self.tenth]
        return fmean(losses) if losses else None

    def compute_final_change(self) -> float | None:
        """Returns the change of a validation loss over the last tenth of the steps, in nats; negative: it fell.

        Measured since the last validation before that tenth, at most a third of the steps before the end; None
        without one.
        """
        if not self.losses or self.losses[-1].step != self.end:
            return None
        earlier = [one for one in self.losses[:-1] if one.step <= self.end - self.tenth]
        if not earlier or self.end - earlier[-1].step > (self.end - self.start) / 3:
            return None
        change = self.losses[-1].loss - earlier[-1].loss
        return change * self.tenth / (self.end - earlier[-1].step)

    def find_rise(self) -> LoggedLoss | None:
        """Returns the lowest validation loss, if the last one is higher by RISE."""
        if not self.losses:
            return None
        lowest = min(self.losses, key=lambda one: one.loss)
        return lowest if self.losses[-1].loss > lowest.loss * (1 + RISE) else None

    def has_diverged(self) -> bool:
        """Returns whether a training loss ended above its mean in an earlier tenth, by more than its noise."""
        comparisons = [(tenth, self._compare(tenth)) for tenth in range(9)]
        return any(
            change is not None
            and change[0] > DIVERGENCE * (self.compute_mean(tenth) or math.inf)
            and change[0] > DIVERGENCE_ERRORS * change[1]
            for tenth, change in comparisons
        )

    def _compare(self, tenth: int) -> tuple[float, float] | None:
        earlier, last = self._select(tenth), self._select(9)
        if min(len(earlier), len(last)) < MIN_LINES:
            return None
        error = math.hypot(*(stdev(losses) / math.sqrt(len(losses)) for losses in (earlier, last)))
        return fmean(last) - fmean(earlier), error

    def _select(self, tenth: int) -> list[float]:
        first = self.start + tenth * self.tenth
        return [loss for step, loss in self.losses if first < step <= first + self.tenth]
