"""Resolution of hardware.processes=auto to a number of processes."""

from __future__ import annotations

from typing import TypeVar

from krill.config.schema import HardwareConfig, ModelCommandConfig, PlanConfig, TrainConfig
from krill.errors import UsageError
from krill.launch.devices import list_visible_gpus
from krill.runs.slurm import get_node_name
from krill.training.compute.device import world_size_from_env

TrainOrModelConfig = TypeVar("TrainOrModelConfig", PlanConfig, TrainConfig, ModelCommandConfig)


def resolve_auto_processes(config: TrainOrModelConfig) -> TrainOrModelConfig:
    """Returns `config` with hardware.processes=auto replaced by the number of GPUs, here or on a node of the job.

    Raises UsageError if device=cuda and there is no GPU, or if the cluster cannot be queried.
    """
    if isinstance(config, PlanConfig) and config.plan.count is not None:
        return _with_processes(config, _divide_count(config.plan.count, config.hardware))
    if config.hardware.processes != "auto":
        return config
    if isinstance(config, PlanConfig) and config.plan.device is not None:
        raise UsageError(
            f"hardware={config.hardware.name} has a rank on every device: set how many there are, as in "
            f"plan.device={config.plan.device} plan.count=8"
        )
    return _with_processes(config, _count_processes(config.hardware, config.device))


def _with_processes(config: TrainOrModelConfig, processes: int) -> TrainOrModelConfig:
    hardware = config.hardware.model_copy(update={"processes": processes})
    return config.model_copy(update={"hardware": hardware})


def _divide_count(count: int, hardware: HardwareConfig) -> int:
    """Returns the ranks on each node for `count` devices in all."""
    nodes = hardware.slurm.nodes if hardware.slurm else 1
    if count % nodes:
        raise UsageError(
            f"plan.count={count} devices do not divide over hardware.slurm.nodes={nodes}; use plan.count="
            f"{nodes * max(1, count // nodes)}"
        )
    return count // nodes


def _count_processes(hardware: HardwareConfig, device: str) -> int:
    if hardware.slurm is not None:
        from krill.launch.cluster import count_gpus_per_node

        return count_gpus_per_node(hardware.slurm) // max(1, hardware.slurm.gpus)
    if world_size_from_env() > 1:
        return world_size_from_env()
    num_gpus = len(list_visible_gpus())
    if not num_gpus and device == "cuda":
        raise UsageError(
            f"hardware.processes=auto: no CUDA device on {get_node_name()}; use hardware.processes=1 or "
            "hardware=cpu"
        )
    return max(1, num_gpus)
