"""Section `hardware`: the machine that a run is computed on, and the SLURM job that it is submitted as."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PlainSerializer, PositiveInt

from krill.config.schema.base import FolderName, Section, Unsigned, to_list


def _parse_duration(value: object) -> object:
    """A length of time as people and SLURM write it, in minutes."""
    if not isinstance(value, str) or value == "auto":
        if isinstance(value, int):  # YAML makes 43200 of 12:00:00
            raise ValueError(f"{value} has no unit; write 90m, 12h, 2d, or '1-12:00:00' in quotes")
        return value
    if match := re.fullmatch(r"(\d+)\s*([mhd])", value):
        return int(match[1]) * {"m": 1, "h": 60, "d": 1440}[match[2]]
    if match := re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", value):
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return (days * 24 + hours) * 60 + minutes + (seconds > 0)
    raise ValueError(f"{value!r} is no length of time; write 90m, 12h, 2d or 1-12:00:00")


def _format_minutes(minutes: int | str) -> str:
    return minutes if isinstance(minutes, str) else f"{minutes}m"


class SlurmConfig(Section):
    """The job that a command is submitted as; what is null is left to the cluster."""

    nodes: PositiveInt
    """Machines of a job. A training takes hardware.processes tasks on each, which are its ranks."""
    gpus: NonNegativeInt
    """GPUs of each process; 0: none is asked for."""
    gpu_type: str | None
    """The kind of GPU, as the cluster calls it: a100."""
    cpus: Literal["auto"] | PositiveInt
    """CPUs of each process. auto: a GPU's share of the node; without GPUs 8, or what a node has."""
    memory: Annotated[str, Field(pattern=r"^\d+[KMGT]?$")] | None
    """Memory of a job on each node: 64G."""
    time: Annotated[
        Literal["auto"] | PositiveInt,
        BeforeValidator(_parse_duration),
        PlainSerializer(_format_minutes, return_type=str),
    ]
    """Time limit of a job: 90m, 12h, 2d or 1-12:00:00. auto: a day, or what the partition allows. A longer training
    is saved before and goes on by itself (requeues)."""
    save_before: PositiveInt
    """Seconds before the time limit at which a training saves and is put in the queue again."""
    requeues: NonNegativeInt
    """How often a job that met its time limit or was preempted goes on."""
    partition: str | None
    """Partition of the cluster."""
    account: str | None
    """Account that the time is charged to."""
    qos: str | None
    """Quality of service."""
    constraint: str | None
    """Features that a node must have."""
    setup: Annotated[list[str], BeforeValidator(to_list)]
    """Lines of the shell before the command: modules, environment variables."""
    options: dict[str, str | bool]
    """Further options of sbatch: {mail-type: END}; true: one without a value."""


class HardwareConfig(Section):
    """The machine a run is made for."""

    name: Unsigned[FolderName]
    """What the setting is called."""
    precision: Literal["auto", "fp32", "bf16"]
    """Arithmetic of the forward pass; weights stay fp32. auto: bf16 on CUDA devices that have it, else fp32."""
    attention: Unsigned[
        Literal["auto", "varlen", "sdpa", "flex", "flash_attention_2", "flash_attention_3", "eager"]
    ]
    """Attention backend; each isolates documents. auto: the fastest that computes the model here, mostly varlen."""
    loss: Unsigned[Literal["auto", "chunked", "full", "liger"]]
    """How the loss is computed: chunked never holds the logits of all tokens, liger is its like on CUDA.
    auto: liger where it is installed on CUDA, else chunked, and full for a model that needs it."""
    liger: Unsigned[Literal["auto"] | bool]
    """Liger's norms, rotary embeddings and MLPs. auto: where it is installed on CUDA and knows the model."""
    compile: Unsigned[bool]
    """Compile forward and backward pass with torch.compile; only with a CUDA device."""
    gradient_checkpointing: Unsigned[bool]
    """Compute activations again in the backward pass instead of keeping them: less memory, up to a third slower."""
    processes: Unsigned[Literal["auto"] | PositiveInt]
    """Ranks: processes of a machine that train together, each on a device of its own (or a share of the CPU).
    auto: one for each GPU."""
    sharding: Unsigned[Literal["none", "fsdp2"]]
    """none: every rank holds all of the model (DDP); fsdp2: a share of weights, gradients and optimizer state."""
    workers: Unsigned[NonNegativeInt]
    """Processes that load rows, of each rank; 0: the training process itself."""
    threads: Unsigned[PositiveInt | None]
    """CPU threads of torch, of each rank; null: torch's own choice."""
    slurm: Unsigned[SlurmConfig | None]
    """null: everything is done here; else: the command is submitted to SLURM as this job."""
