"""How fast a run goes, between two lines of metrics.

tokens_per_second   tokens of the rows of all ranks, padding not counted, over the time without validation
mfu                 model FLOPs utilization: the FLOPs that the model needs for these tokens, forward and backward,
                    over what the device could do in that time (Chowdhery et al. 2022, "PaLM", appendix B);
                    recomputation of activations does not count
data_wait           share of the time in which the loop waited for the next rows
memory_gb           peak so far, 10⁹ bytes: of the CUDA allocator, on the CPU of the process; the largest of all ranks
seconds_left        at this pace
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from krill.config.schema import CustomModel
from krill.models.build import skeleton
from krill.models.cost import mean_attended, training_flops
from krill.training import ranks
from krill.training.peak import peak_flops
from krill.training.setting import Setting


@dataclass
class Pace:
    """Counts what was served and how long it took. Nothing in it waits for the device.

    `flops_per_token`: of forward and backward; `peak`: FLOP/s of the device; None: mfu is not told.
    """

    device: torch.device
    flops_per_token: float | None = None
    peak: float | None = None
    last_step: int = 0
    tokens: int = 0
    waited: float = 0.0
    elapsed: float = 0.0
    since: float | None = field(default=None, repr=False)

    def served(self, step: int, tokens: int, waited: float) -> None:
        """The rows of the step after `step` are there: `tokens` in all, after `waited` seconds."""
        if self.since is None:  # the first of this process: workers that start are no part of the pace
            self.since, self.last_step, waited = time.perf_counter(), step, 0.0
        self.tokens += tokens
        self.waited += waited

    @contextmanager
    def paused(self) -> Iterator[None]:
        """For what is no training: a validation."""
        self._stop()
        yield
        self.since = time.perf_counter()

    def figures(self, step: int, max_steps: int) -> dict[str, float]:
        """The figures since the last call, as this module's head lists them."""
        self._stop()
        seconds, steps = max(self.elapsed, 1e-9), max(step - self.last_step, 1)
        tokens = int(ranks.summed(torch.tensor(self.tokens)))
        found = {
            "tokens_per_second": round(tokens / seconds, 1),
            "data_wait": round(self.waited / seconds, 4),
            "memory_gb": round(ranks.largest(peak_memory(self.device)) / 1e9, 3),
            "seconds_left": round((max_steps - step) * seconds / steps, 1),
        }
        if self.flops_per_token and self.peak:
            each = tokens / ranks.count()
            found["mfu"] = round(each * self.flops_per_token / seconds / self.peak, 4)
        self.last_step, self.tokens, self.waited, self.elapsed = step, 0, 0.0, 0.0
        return found

    def _stop(self) -> None:
        now = time.perf_counter()
        if self.since is not None:
            self.elapsed += now - self.since
        self.since = now


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that tensors took on a CUDA device, or that this process took of the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def pace_of(setting: Setting) -> Pace:
    """With what a token costs and what the device could do; of a model of one's own the cost is not known."""
    config = setting.config
    flops = peak = None
    if not isinstance(config.model, CustomModel):
        attended = mean_attended(setting.rows.lengths.tolist())
        flops = training_flops(
            skeleton(config.model, setting.tokenizer.vocab_size), config.sequence_len, attended
        )
        peak = peak_flops(setting.device.type, setting.precision, torch.get_num_threads())
    return Pace(setting.device, flops, peak)
