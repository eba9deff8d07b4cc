"""Measures the throughput of a run between two lines of metrics.

tokens_per_second   tokens of the rows of all ranks, padding not counted, divided by the time without validation
mfu                 model FLOPs utilization: the FLOPs that the model needs for these tokens, forward and backward,
                    divided by the peak FLOPs of the device in that time (Chowdhery et al. 2022, "PaLM", appendix B),
                    for fp8 by those of bf16; recomputation of activations does not count. Not on a CPU, whose peak
                    is unknown: a measurement is too low while other processes compute
data_wait           share of the time that the loop waited for the next rows
memory_gb           peak memory so far in 10⁹ bytes, maximum over ranks: of the CUDA allocator, or of the process
                    when training on the CPU
seconds_left        until the last step at this speed
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from krill.config.schema import CustomModelConfig
from krill.models.build import build_meta_model
from krill.models.cost import compute_mean_attention_span, compute_training_flops
from krill.resources import read_peak_rss
from krill.training import ranks
from krill.training.metrics.peak_flops import get_peak_flops
from krill.training.setup import RunSetup


@dataclass
class ThroughputMeter:
    """Counts tokens and time without waiting for the device.

    `flops_per_token`: FLOPs of forward and backward; `peak_flops`: FLOP/s of the device. None: mfu is not reported.
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
        """Counts the rows of the step after `step`: `tokens` in total, which took `waited` seconds to load."""
        if self.started_at is None:  # first batch of this process: do not measure the start of the workers
            self.started_at, self.window_start_step, waited = time.perf_counter(), step, 0.0
        self.tokens += tokens
        self.wait_seconds += waited

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Stops the clock during the context, for work that is not training and that waits for the device anyway."""
        if self.device.type == "cuda":  # steps that the device has not finished yet are training
            torch.cuda.synchronize(self.device)
        self._update_elapsed()
        yield
        self.started_at = time.perf_counter()

    def collect_metrics(self, step: int, max_steps: int) -> dict[str, float]:
        """Returns the metrics since the last call, as listed in the module docstring."""
        self._update_elapsed()
        seconds, steps = max(self.elapsed_seconds, 1e-9), max(step - self.window_start_step, 1)
        tokens = int(ranks.all_reduce_sum(torch.tensor(self.tokens)))
        metrics = {
            "tokens_per_second": round(tokens / seconds, 1),
            "data_wait": round(self.wait_seconds / seconds, 4),
            "memory_gb": round(ranks.all_reduce_max(get_peak_memory(self.device)) / 1e9, 3),
            "seconds_left": round((max_steps - step) * seconds / steps, 1),
        }
        if self.flops_per_token and self.peak_flops:
            tokens_per_rank = tokens / ranks.get_world_size()
            metrics["mfu"] = round(tokens_per_rank * self.flops_per_token / seconds / self.peak_flops, 4)
        self.window_start_step, self.tokens, self.wait_seconds, self.elapsed_seconds = step, 0, 0.0, 0.0
        return metrics

    def _update_elapsed(self) -> None:
        now = time.perf_counter()
        if self.started_at is not None:
            self.elapsed_seconds += now - self.started_at
        self.started_at = now


def get_peak_memory(device: torch.device) -> int:
    """Returns the peak memory in bytes: of tensors on a CUDA device, or of this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return read_peak_rss()


def build_throughput_meter(setup: RunSetup) -> ThroughputMeter:
    """Returns a meter, without FLOPs per token for a custom model, whose cost is unknown, or peak FLOP/s on a CPU."""
    config = setup.config
    flops = peak = None
    if not isinstance(config.model, CustomModelConfig):
        mean_span = compute_mean_attention_span(setup.train_rows.lengths)
        flops = compute_training_flops(
            build_meta_model(config.model, setup.tokenizer.vocab_size), config.sequence_len, mean_span
        )
        if setup.device.type == "cuda":
            peak = get_peak_flops(setup.device.type, setup.precision, torch.get_num_threads())
    return ThroughputMeter(setup.device, flops, peak)
