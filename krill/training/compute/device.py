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
    """Returns bf16 or fp32, for a value of hardware.precision on `device` (cuda or cpu)."""
    import torch

    if requested == "auto":
        return "bf16" if device == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    return requested
