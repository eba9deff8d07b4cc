"""Section `hardware`: how a run is computed, and the SLURM job that it is submitted as."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PlainSerializer

from krill.config.schema.base import (
    CountOrZero,
    FolderName,
    Processes,
    ProcessesOrZero,
    Section,
    Size,
    Unsigned,
    to_list,
)


def _parse_duration(value: object) -> object:
    """Converts a duration such as 90m, 12h, 2d or 1-12:00:00 (SLURM's format) to minutes."""
    if not isinstance(value, str) or value == "auto":
        if isinstance(value, int):  # YAML reads 12:00:00 as 43200
            raise ValueError(f"{value} has no unit; use 90m, 12h, 2d, or '1-12:00:00' in quotes")
        return value
    if match := re.fullmatch(r"(\d+)\s*([mhd])", value):
        return int(match[1]) * {"m": 1, "h": 60, "d": 1440}[match[2]]
    if match := re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", value):
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return (days * 24 + hours) * 60 + minutes + (seconds > 0)
    raise ValueError(f"{value!r} is not a duration; use 90m, 12h, 2d or 1-12:00:00")


def _format_minutes(minutes: int | str | None) -> str | None:
    return f"{minutes}m" if isinstance(minutes, int) else minutes


class SlurmConfig(Section):
    """The SLURM job that a command is submitted as; the cluster decides about keys that are null."""

    nodes: Processes
    """Number of nodes of a job. A training run starts hardware.processes tasks on each, which are its
    ranks."""
    gpus: ProcessesOrZero
    """Number of GPUs per process; 0: none are requested."""
    gpu_type: str | None
    """Type of GPU by the cluster's name, such as a100."""
    cpus: Literal["auto"] | Processes
    """Number of CPUs per process. auto: a GPU's share of the node; without GPUs 8, or as many as a node
    has."""
    memory: Literal["auto"] | Annotated[str, Field(pattern=r"^\d+[KMGT]?$")] | None
    """Memory of a job per node, such as 64G. auto: what krill-plan computes for a training run, rounded up; with GPUs
    the host memory, by assumption."""
    time: Annotated[
        Literal["auto"] | Size | None,
        BeforeValidator(_parse_duration),
        PlainSerializer(_format_minutes, return_type=str | None),
    ]
    """Time limit of a job: 90m, 12h, 2d or 1-12:00:00. auto: the longest time that krill-plan expects of a training
    run, rounded up. null: one day, or the partition's limit if that is shorter. A longer training run saves before
    the limit and resumes automatically (requeues)."""
    plan_device: str | None
    """Device of krill-plan's table for which time=auto and memory=auto plan, such as h100; null: that of gpu_type, or
    of the partition's GPUs."""
    save_before: Size
    """Seconds before the time limit at which a training run saves and is requeued."""
    requeues: CountOrZero
    """Maximum number of times that a job that reached its time limit or was preempted is requeued."""
    partition: str | None
    """Partition of the cluster."""
    account: str | None
    """Account that the job is charged to."""
    qos: str | None
    """Quality of service (sbatch --qos)."""
    constraint: str | None
    """Features that the nodes must have."""
    setup: Annotated[list[str], BeforeValidator(to_list)]
    """Shell commands to run before the command: modules, environment variables."""
    options: dict[str, str | bool]
    """Additional options of sbatch, such as {mail-type: END}; true: an option without a value."""


class HardwareConfig(Section):
    """How a run is computed."""

    name: Unsigned[FolderName]
    """Name of the option of hardware=; recorded, without effect."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp8"]
    """Data type of the forward pass; weights are fp32. auto: bf16 on CUDA devices that support it in hardware,
    otherwise fp32. tf32: fp32 whose matrix products round their inputs to 10 bits of mantissa (CUDA). fp8: bf16 whose
    linear layers multiply in fp8 (Ada, Hopper and newer; needs torchao)."""
    attention: Unsigned[
        Literal[
            "auto",
            "varlen",
            "sdpa",
            "flex",
            "flash_attention_2",
            "flash_attention_3",
            "flash_attention_4",
            "eager",
        ]
    ]
    """Attention backend; all isolate documents. auto: the fastest that supports model and device, usually
    varlen; flash_attention_3 or flash_attention_4 if it is installed and the GPU supports it."""
    loss: Unsigned[Literal["auto", "chunked", "full", "liger"]]
    """How the loss is computed: chunked never stores the logits of all tokens; liger is Liger's kernel for
    the same on CUDA. auto: chunked, or full for a model that needs it."""
    liger: Unsigned[Literal["auto"] | bool]
    """Use Liger's norms, rotary embeddings and MLPs. auto: if it is installed, on CUDA, and supports the
    model, and the run is not compiled."""
    compile: Unsigned[Literal["auto"] | bool]
    """Compile forward and backward pass with torch.compile; needs a CUDA device. auto: on CUDA, for a run of
    2,000 forward passes (steps × passes per step) or more, which repay the compilation."""
    gradient_checkpointing: Unsigned[bool]
    """Recompute activations in the backward pass instead of storing them: less memory, up to a third
    slower."""
    processes: Unsigned[Literal["auto"] | Processes]
    """Number of ranks per machine: processes that train together, each on its own device (or a share of the
    CPU). auto: one per GPU."""
    sharding: Unsigned[Literal["none", "fsdp2", "hsdp"]]
    """none: every rank holds the whole model (DDP). fsdp2: each holds a shard of weights, gradients and
    optimizer state. hsdp: sharded within each node, with a replica on every node."""
    context_parallel: Unsigned[Processes]
    """Number of ranks that share the tokens of each row, for rows whose activations do not fit on one device;
    1: every rank computes whole rows. Must divide the ranks, sequence_len and the attention heads."""
    workers: Unsigned[ProcessesOrZero]
    """Number of processes per rank that load rows; 0: the training process loads them."""
    threads: Unsigned[Processes | None]
    """Number of CPU threads per rank; null: OMP_NUM_THREADS if it is set, otherwise torch's default for one rank
    and an equal share of the cores for several."""
    stall: Unsigned[
        Annotated[
            Size | None,
            BeforeValidator(_parse_duration),
            PlainSerializer(_format_minutes, return_type=str | None),
        ]
    ]
    """Time after which a rank without a sign of life, because it was stopped or gets no CPU, ends the run with an
    error that names it: 10m, 2h; null: never. For the ranks that krill starts on this machine."""
    slurm: Unsigned[SlurmConfig | None]
    """SLURM job that the command is submitted as; null: it runs on this machine."""
