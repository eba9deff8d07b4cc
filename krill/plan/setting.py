"""How a planned run is computed: the device, and what each `auto` of the configuration means on it, without torch."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass, replace
from functools import lru_cache

from krill.config.schema import TrainConfig
from krill.device_table import Device, find_device
from krill.errors import UsageError
from krill.resources import count_cpu_cores, read_memory_limit
from krill.training.batch_shape import BatchShape, compute_batch_shape
from krill.training.compute.device import (
    BF16_PRECISIONS,
    resolve_data_ranks,
    resolve_shard_size,
    resolve_world_size,
)
from krill.training.compute.thresholds import MIN_PASSES

MATRIX_SIZE, MATMUL_REPEATS = 1024, 4
"""Size and number of the matrix products that measure a CPU: less than 0.2 seconds on two cores."""


@dataclass(frozen=True)
class ComputeSetting:
    """The computation of a run on one rank, and the ranks that share it."""

    device: Device
    precision: str
    """bf16, fp8, tf32 or fp32."""
    loss: str
    """full, chunked or liger."""
    attention: str
    """The value of hardware.attention; auto: varlen, or sdpa for fp32 on CUDA."""
    gradient_checkpointing: bool
    world_size: int
    shard_size: int
    """Ranks that share one copy of weights, gradients and optimizer state; 1: each has its own."""
    ranks_per_node: int
    context_parallel: int
    batch: BatchShape
    can_compile: bool | None
    """The value of hardware.compile; None: auto."""
    threads: int = 1
    """CPU threads of a rank."""

    @property
    def activation_precision(self) -> str:
        """The precision of the forward pass: bf16 (autocast) or fp32."""
        return "bf16" if self.precision in BF16_PRECISIONS else "fp32"

    @property
    def memory_per_rank(self) -> int:
        """The memory that one rank may use: all of its GPU, or its share of the machine."""
        return self.device.memory // (self.ranks_per_node if self.device.kind == "cpu" else 1)

    @property
    def peak_flops(self) -> float:
        """FLOP/s of one rank in its precision; attention and head of fp8 are in bf16, whose peak counts."""
        precision = "bf16" if self.precision == "fp8" else self.precision
        if self.device.kind == "cuda":
            return self.device.peak_flops[precision]
        return self.device.peak_flops.get(precision, self.device.peak_flops["fp32"]) / self.ranks_per_node

    def is_compiled(self, steps: int | None) -> bool:
        """Returns whether a run of `steps` is compiled; None: a long one."""
        if self.device.kind == "cpu":
            return False
        if self.can_compile is not None:
            return self.can_compile
        return steps is None or steps * self.batch.accumulation_steps >= MIN_PASSES


def build_compute_setting(config: TrainConfig, device: Device) -> ComputeSetting:
    """Returns how `config` is computed on ranks that have a `device` each (a share of it, if it is a CPU).

    Raises UsageError for a precision that the device lacks, and for ranks that do not divide the batch.
    """
    hardware = config.hardware
    world_size = resolve_world_size(config)
    nodes = hardware.slurm.nodes if hardware.slurm else 1
    precision = _resolve_precision(hardware.precision, device)
    attention = hardware.attention
    if attention == "auto":
        is_sdpa = device.kind == "cuda" and precision not in BF16_PRECISIONS
        attention = "sdpa" if is_sdpa else "varlen"
    return ComputeSetting(
        device=device,
        precision=precision,
        loss="chunked" if hardware.loss == "auto" else hardware.loss,
        attention=attention,
        gradient_checkpointing=hardware.gradient_checkpointing,
        world_size=world_size,
        shard_size=resolve_shard_size(config),
        ranks_per_node=max(1, world_size // nodes),
        context_parallel=hardware.context_parallel,
        batch=compute_batch_shape(config, resolve_data_ranks(config, world_size)),
        can_compile=None if hardware.compile == "auto" else bool(hardware.compile),
        threads=_resolve_threads(hardware.threads, max(1, world_size // nodes)),
    )


def _resolve_threads(requested: int | None, ranks_per_node: int) -> int:
    """Returns the CPU threads of a rank, as `krill.launch.local` sets them."""
    return requested or _read_omp_threads() or max(1, count_cpu_cores() // ranks_per_node)


def _read_omp_threads() -> int | None:
    """Returns OMP_NUM_THREADS; None if it is not set, or not a number of threads, which OpenMP ignores."""
    outermost, _, _ = os.environ.get("OMP_NUM_THREADS", "").partition(",")  # of 4,2: 4
    first = outermost.strip()
    return int(first) or None if first.isdecimal() and len(first) < 10 else None


def _resolve_precision(requested: str, device: Device) -> str:
    if device.kind == "cpu":
        if requested in ("tf32", "fp8"):
            raise UsageError(
                f"hardware.precision={requested} needs a CUDA device; use hardware.precision=auto or "
                "plan.device=h100"
            )
        return "fp32" if requested == "auto" else requested
    if requested == "auto":
        return "bf16" if "bf16" in device.peak_flops else "fp32"
    if requested not in device.peak_flops:
        raise UsageError(
            f"hardware.precision={requested}: {device.name} does not compute in it; use hardware.precision=auto"
        )
    return requested


def describe_local_device(config: TrainConfig, gpu_names: list[str], table: str | None = None) -> Device:
    """Returns the device of this machine on which `config` runs.

    Args:
        config: The run; hardware.processes is a number.
        gpu_names: The visible CUDA devices; without any, it is the CPU.
        table: The user's own table of devices.

    Raises:
        UsageError: the GPU is not in the table of devices, or cuda is requested and there is none.
    """
    if config.device == "cuda" and not gpu_names:
        raise UsageError(
            "device=cuda: this machine has no CUDA device; name one to plan for: plan.device=h100"
        )
    if config.device == "cpu" or not gpu_names:
        nodes = config.hardware.slurm.nodes if config.hardware.slurm else 1
        ranks = max(1, resolve_world_size(config) // nodes)
        return describe_cpu(ranks * _resolve_threads(config.hardware.threads, ranks))
    name, memory = query_gpu()
    device = find_device(name, table)
    if device is None:
        raise UsageError(
            f"the GPU of this machine, {name!r}, is not in krill's table: name a similar one (plan.device=a100), or "
            f"describe it with match: [{name!r}] in a YAML file and set plan.devices=FILE (docs/plan.md)"
        )
    return replace(device, memory=memory)


@lru_cache(maxsize=1)
def query_gpu() -> tuple[str, int]:
    """Returns name and memory in bytes of the first visible GPU, from its driver."""
    index = (os.environ.get("CUDA_VISIBLE_DEVICES") or "0").split(",")[0].strip()
    try:
        answer = subprocess.run(
            ["nvidia-smi", f"--id={index}", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=60, check=True,
        ).stdout  # fmt: skip
        name, _, mebibytes = answer.strip().splitlines()[0].rpartition(",")
        return name.strip(), int(mebibytes) * 2**20
    except (OSError, subprocess.SubprocessError, LookupError, ValueError) as error:
        raise UsageError(
            f"nvidia-smi does not name the GPU of this machine ({error}); name one to plan for: plan.device=h100"
        ) from error


def describe_cpu(threads: int) -> Device:
    """Returns the CPU; `threads`: those of all ranks on this machine."""
    cores = count_cpu_cores()
    share = min(1.0, threads / cores)
    return Device(
        name="cpu",
        kind="cpu",
        peak_flops={"fp32": _measure_cpu_flops() * share},
        memory=read_memory_limit(),
        bandwidth=1e10 * min(cores, 8),
        power=None,
        source=f"matrix products on {min(threads, cores)} of {cores} cores of this machine, measured now",
    )


@lru_cache(maxsize=1)
def _measure_cpu_flops() -> float:
    """Returns the FLOP/s of fp32 matrix products on all cores; numpy does them as torch does, and starts faster."""
    import numpy as np

    a = np.ones((MATRIX_SIZE, MATRIX_SIZE), dtype=np.float32)
    seconds = []
    for _ in range(MATMUL_REPEATS):
        started_at = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - started_at)
    cores = count_cpu_cores()
    used = min(cores, _read_omp_threads() or cores)
    return 2 * MATRIX_SIZE**3 / min(seconds) * cores / used
