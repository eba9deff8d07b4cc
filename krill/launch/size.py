"""How many processes hardware.processes=auto is."""

from __future__ import annotations

from typing import TypeVar

from krill.config.schema import Hardware, InferConfig, TrainConfig
from krill.errors import UsageError
from krill.launch.devices import visible_gpus
from krill.runs.slurm import node
from krill.training.plan import announced

Config = TypeVar("Config", TrainConfig, InferConfig)


def sized(config: Config) -> Config:
    """`config` with a number in place of hardware.processes=auto: one for each GPU, here or on a node of the job.

    Raises UsageError where there is no GPU to count, or no SLURM to ask.
    """
    if config.hardware.processes != "auto":
        return config
    hardware = config.hardware.model_copy(update={"processes": _count(config.hardware, config.device)})
    return config.model_copy(update={"hardware": hardware})


def _count(hardware: Hardware, device: str) -> int:
    if hardware.slurm is not None:
        from krill.launch.cluster import gpus_of_a_node

        return gpus_of_a_node(hardware.slurm) // max(1, hardware.slurm.gpus)
    if announced() > 1:
        return announced()
    found = len(visible_gpus())
    if not found and device == "cuda":
        raise UsageError(
            f"hardware.processes=auto: no CUDA device on {node()}; write hardware.processes=1, or "
            "hardware=cpu"
        )
    return max(1, found)
