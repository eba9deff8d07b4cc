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

from krill.config.schema import CustomModelConfig
from krill.models.build import build_meta_model
from krill.models.cost import compute_mean_attention_span, compute_training_flops
from krill.training import ranks
from krill.training.metrics.peak_flops import get_peak_flops
from krill.training.setup import RunSetup


@dataclass
class ThroughputMeter:
    """Counts what was served and how long it took. Nothing in it waits for the device.

    `flops_per_token`: of forward and backward; `peak_flops`: FLOP/s of the device; None: mfu is not told.
    """

    device: torch.device
    flops_per_token: float | None = None
    peak_flops: float | None = None
    window_start_step: int = 0
    tokens: int = 0
    wait_seconds: float = 0.0
    elapsed_seconds: float = 0.0
    started_at: float | None = field(default=None, repr=False)

    def add_batch(self, step: int, tokens: int, waited: float) -> None:
        """The rows of the step after `step` are there: `tokens` in all, after `waited` seconds."""
        if self.started_at is None:  # the first of this process: workers that start are no part of the pace
            self.started_at, self.window_start_step, waited = time.perf_counter(), step, 0.0
        self.tokens += tokens
        self.wait_seconds += waited

    @contextmanager
    def pause(self) -> Iterator[None]:
        """For what is no training: a validation."""
        self._update_elapsed()
        yield
        self.started_at = time.perf_counter()

    def collect_metrics(self, step: int, max_steps: int) -> dict[str, float]:
        """The figures since the last call, as this module's head lists them."""
        self._update_elapsed()
        seconds, steps = max(self.elapsed_seconds, 1e-9), max(step - self.window_start_step, 1)
        tokens = int(ranks.all_reduce_sum(torch.tensor(self.tokens)))
        found = {
            "tokens_per_second": round(tokens / seconds, 1),
            "data_wait": round(self.wait_seconds / seconds, 4),
            "memory_gb": round(ranks.all_reduce_max(get_peak_memory(self.device)) / 1e9, 3),
            "seconds_left": round((max_steps - step) * seconds / steps, 1),
        }
        if self.flops_per_token and self.peak_flops:
            each = tokens / ranks.get_world_size()
            found["mfu"] = round(each * self.flops_per_token / seconds / self.peak_flops, 4)
        self.window_start_step, self.tokens, self.wait_seconds, self.elapsed_seconds = step, 0, 0.0, 0.0
        return found

    def _update_elapsed(self) -> None:
        now = time.perf_counter()
        if self.started_at is not None:
            self.elapsed_seconds += now - self.started_at
        self.started_at = now


def get_peak_memory(device: torch.device) -> int:
    """Bytes: the most that tensors took on a CUDA device, or that this process took of the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def build_throughput_meter(setting: RunSetup) -> ThroughputMeter:
    """With what a token costs and what the device could do; of a model of one's own the cost is not known."""
    config = setting.config
    flops = peak = None
    if not isinstance(config.model, CustomModelConfig):
        attended = compute_mean_attention_span(setting.train_rows.lengths.tolist())
        flops = compute_training_flops(
            build_meta_model(config.model, setting.tokenizer.vocab_size), config.sequence_len, attended
        )
        peak = get_peak_flops(setting.device.type, setting.precision, torch.get_num_threads())
    return ThroughputMeter(setting.device, flops, peak)
