"""Looks up the peak FLOP/s of a device in the table of devices, or measures it for other devices."""

from __future__ import annotations

import time
from functools import lru_cache

import torch

from krill.device_table import find_device
from krill.training.compute.device import BF16_PRECISIONS, apply_precision

MATRIX_SIZE = {"cuda": 8192, "cpu": 1024}
MATMUL_REPEATS = 5


@lru_cache
def get_peak_flops(device: str, precision: str, threads: int) -> float:
    """Returns the FLOP/s of `device` (cuda or cpu) in matrix products in `precision` (bf16, fp8, tf32 or fp32).

    For fp8 it is that of bf16, in which attention and head are computed: mfu is comparable with that of a bf16 run.

    Without a data sheet it is measured by the fastest of a few square products: an upper bound in practice, but too
    low on a device that is busy otherwise. `threads`, the number of CPU threads, is part of the cache key.
    """
    if device == "cuda" and precision != "fp32":
        sheet = find_device(torch.cuda.get_device_name())
        counted = "bf16" if precision == "fp8" else precision
        if sheet is not None and counted in sheet.peak_flops:
            return sheet.peak_flops[counted]
    return _measure_flops(device, precision)


def _measure_flops(device: str, precision: str) -> float:
    size = MATRIX_SIZE[device]
    dtype = torch.bfloat16 if precision in BF16_PRECISIONS else torch.float32
    a = torch.ones(size, size, dtype=dtype, device=device)
    previous = torch.get_float32_matmul_precision()
    apply_precision(precision)  # a dry run has not
    try:
        return 2 * size**3 / min(_time_matmul(a) for _ in range(MATMUL_REPEATS))
    finally:
        torch.set_float32_matmul_precision(previous)


def _time_matmul(a: torch.Tensor) -> float:
    started_at = time.perf_counter()
    torch.mm(a, a)
    if a.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started_at
