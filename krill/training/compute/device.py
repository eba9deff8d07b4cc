"""The device, precision and world size that a configuration resolves to on this machine."""

from __future__ import annotations

import os
from importlib.util import find_spec

from krill.config.schema import TrainConfig
from krill.errors import UsageError
from krill.extras import format_install_command
from krill.runs.slurm import get_node_name

BF16_PRECISIONS = ("bf16", "fp8")
"""Precisions whose forward pass runs with bf16 autocast; with fp8, linear layers round their inputs further."""

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


def resolve_data_ranks(config: TrainConfig, world_size: int) -> int:
    """Returns how many of `world_size` ranks read rows of their own; the ranks that share rows count once.

    Raises UsageError if hardware.context_parallel does not divide the ranks.
    """
    parts = config.hardware.context_parallel
    if world_size % parts:
        raise UsageError(
            f"hardware.context_parallel={parts} does not divide the number of ranks, {world_size}; start a multiple "
            f"of {parts} (hardware.processes={parts}), or use hardware.context_parallel=1"
        )
    return world_size // parts


def resolve_node_size(config: TrainConfig) -> int:
    """Returns the number of ranks of a node: LOCAL_WORLD_SIZE if ranks were started, else those krill will start."""
    if world_size_from_env() == 1:
        assert config.hardware.processes != "auto"
        return config.hardware.processes
    if not (size := os.environ.get("LOCAL_WORLD_SIZE")):
        raise UsageError(
            "LOCAL_WORLD_SIZE is not set: hardware.sharding=hsdp needs the number of ranks of each node. torchrun "
            "and srun set it; with another launcher set it yourself, or use hardware.sharding=fsdp2"
        )
    return int(size)


def resolve_shard_size(config: TrainConfig) -> int:
    """Returns the number of ranks that share one copy of weights, gradients and optimizer state; 1: each has its own.

    Raises UsageError for hsdp where the nodes do not have equal numbers of ranks, or there is only one.
    """
    world_size = resolve_world_size(config)
    if config.hardware.sharding != "hsdp":
        return 1 if config.hardware.sharding == "none" else world_size
    size = resolve_node_size(config)
    if size == 1 or size == world_size:
        reason = "each node has one rank" if size == 1 else f"all {world_size} ranks are on one node"
        raise UsageError(
            f"hardware.sharding=hsdp shards within a node and replicates across nodes, but {reason}; use "
            "hardware.sharding=fsdp2"
        )
    if world_size % size:
        raise UsageError(
            f"hardware.sharding=hsdp: {world_size} ranks are not a multiple of the {size} of this node; start the "
            "same number on every node, or use hardware.sharding=fsdp2"
        )
    return size


def resolve_device(requested: str) -> str:
    """Returns cuda or cpu. Raises UsageError when CUDA is requested and not available."""
    import torch

    if requested == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            f"device=cuda: no usable CUDA device on {get_node_name()}; use device=auto or device=cpu"
        )
    return "cuda" if requested != "cpu" and torch.cuda.is_available() else "cpu"


def resolve_precision(requested: str, device: str) -> str:
    """Returns bf16, fp8, tf32 or fp32, for a value of hardware.precision on `device` (cuda or cpu).

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
    if requested == "fp8":
        _check_fp8_support(device)
    return "fp32" if requested == "auto" else requested


def _check_fp8_support(device: str) -> None:
    """Raises UsageError if `device` does not multiply fp8, or torchao is not installed."""
    if device == "cpu":
        actual = "this run is on the CPU"
    elif (capability := get_compute_capability()) < (8, 9):
        actual = f"this one has {capability[0]}.{capability[1]}"
    elif find_spec("torchao") is None:
        raise UsageError(
            f"hardware.precision=fp8 needs the package torchao ({format_install_command('fp8')}); use "
            "hardware.precision=bf16"
        )
    else:
        return
    raise UsageError(
        "hardware.precision=fp8 needs a CUDA device of compute capability 8.9 or newer (Ada, Hopper, Blackwell), "
        f"{actual}; use hardware.precision=auto"
    )


def get_compute_capability() -> tuple[int, int]:
    """Returns the compute capability of the CUDA device: (8, 0) for A100, (9, 0) for H100."""
    import torch

    return torch.cuda.get_device_capability()


def apply_precision(precision: str) -> None:
    """Makes matrix products of fp32 tensors use TF32 for tf32, and fp32 otherwise."""
    import torch

    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
