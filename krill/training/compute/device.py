"""The device, precision and world size that a configuration resolves to on this machine."""

from __future__ import annotations

import os

from krill.config.schema import TrainConfig
from krill.errors import UsageError
from krill.runs.slurm import get_node_name

# torch is imported inside the functions that need it: the launchers import this module and stay light.


def world_size_from_env() -> int:
    """Returns WORLD_SIZE, the number of ranks that the launcher of this process started; 1 where it is not set."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def resolve_world_size(config: TrainConfig) -> int:
    """Returns the number of processes that train together: those started, else those krill will start."""
    if world_size_from_env() > 1:
        return world_size_from_env()
    processes, slurm = config.hardware.processes, config.hardware.slurm
    assert processes != "auto"  # resolved by krill.launch.auto_processes
    return processes * (slurm.nodes if slurm else 1)


def resolve_device(requested: str) -> str:
    """Returns cuda or cpu. Raises UsageError when CUDA is requested and not available."""
    import torch

    if requested == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            f"device=cuda: no usable CUDA device on {get_node_name()}; use device=auto or device=cpu"
        )
    return "cuda" if requested != "cpu" and torch.cuda.is_available() else "cpu"


def resolve_precision(requested: str, device: str) -> str:
    """Returns bf16, tf32 or fp32, for a value of hardware.precision on `device` (cuda or cpu).

    Raises UsageError for a precision that the device does not compute in.
    """
    import torch

    # torch counts bf16 that an older GPU emulates as supported; it is slow, and Flash Attention lacks it
    if requested in ("auto", "bf16") and device == "cuda":
        is_supported = torch.cuda.is_bf16_supported(including_emulation=False)
        if requested == "bf16" and not is_supported:
            raise UsageError(
                "hardware.precision=bf16: this GPU only emulates bf16; use hardware.precision=auto or fp32"
            )
        return "bf16" if is_supported else "fp32"
    if requested == "tf32" and (device == "cpu" or get_compute_capability() < (8, 0)):
        raise UsageError(
            "hardware.precision=tf32 needs a CUDA device of compute capability 8.0 or newer; use "
            "hardware.precision=fp32"
        )
    return "fp32" if requested == "auto" else requested


def get_compute_capability() -> tuple[int, int]:
    """Returns the compute capability of the CUDA device: (8, 0) for A100, (9, 0) for H100."""
    import torch

    return torch.cuda.get_device_capability()


def apply_precision(precision: str) -> None:
    """Makes matrix products of fp32 tensors use TF32 for tf32, and fp32 otherwise."""
    import torch

    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
