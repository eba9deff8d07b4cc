"""Queries of a SLURM cluster: its partitions, their nodes, and the size of its arrays."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from functools import cache

from krill.config.schema import SlurmConfig
from krill.config.suggestions import suggest
from krill.errors import UsageError
from krill.runs.slurm import run_slurm_command

MINUTES_PER_DAY = 24 * 60


@dataclass(frozen=True)
class PartitionNodes:
    """The nodes of a partition."""

    min_cpus: int
    """CPUs of the smallest node."""
    gpu_counts: frozenset[int]
    """The different numbers of GPUs of the requested type that nodes have."""
    gpu_types: frozenset[str]
    """The types of GPUs of all nodes; a type without a name is not in it."""
    time_limit_minutes: int | None
    """Time limit of the partition; None: unlimited."""


def require_slurm() -> None:
    """Raises UsageError if jobs cannot be submitted from this machine."""
    if not all(map(shutil.which, ("sbatch", "sinfo", "squeue", "scontrol"))):
        raise UsageError(
            "no SLURM on this machine (sbatch is missing): run the command on a login node of the cluster, or "
            "choose hardware=auto, cpu, gpu or gpus"
        )


def count_gpus_per_node(slurm: SlurmConfig) -> int:
    """Returns the GPUs of a node of the partition. Raises UsageError if it has none or nodes differ in them."""
    counts = query_nodes(slurm.partition, slurm.gpu_type).gpu_counts - {0}
    name = f"partition {slurm.partition}" if slurm.partition else "the default partition"
    if not counts:
        raise UsageError(
            f"{name} has no GPUs{f' of type {slurm.gpu_type}' if slurm.gpu_type else ''}: choose another with "
            "hardware.slurm.partition= (sinfo -o '%P %G' shows them), or hardware=slurm_cpu"
        )
    if len(counts) > 1:
        raise UsageError(
            f"{name} has nodes with {' and '.join(map(str, sorted(counts)))} GPUs: set hardware.processes=…"
        )
    return min(counts)


@cache
def query_nodes(partition: str | None, gpu_type: str | None = None) -> PartitionNodes:
    """Returns the nodes of a partition; None: of the default partition."""
    require_slurm()
    lines = [
        line.split("|") for line in run_slurm_command("sinfo", "--noheader", "--Node", "--format=%P|%G|%c|%l")
    ]
    nodes = [line for line in lines if _is_partition(line[0], partition)]
    if not nodes:
        names = sorted({line[0].rstrip("*") for line in lines})
        raise UsageError(
            f"hardware.slurm.partition={partition}: no such partition. {suggest(str(partition), names)}"
        )
    return PartitionNodes(
        min_cpus=min(int(line[2].rstrip("+")) for line in nodes),
        gpu_counts=frozenset(_count_gpus(line[1], gpu_type) for line in nodes),
        gpu_types=frozenset(name for line in nodes for name, _ in _list_gpus(line[1]) if name),
        time_limit_minutes=_parse_time_limit(nodes[0][3]),
    )


@cache
def query_max_array_size() -> int:
    """Returns the number of tasks that one array may have."""
    settings = "\n".join(run_slurm_command("scontrol", "show", "config"))
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", settings, re.MULTILINE)
    return int(match[1]) if match else 1001


def _is_partition(partition: str, name: str | None) -> bool:
    return partition.rstrip("*") == name if name else partition.endswith("*")


def _count_gpus(resources: str, gpu_type: str | None) -> int:
    """Returns the number of GPUs in a list such as gpu:a100:4(S:0-1),license:2."""
    return sum(int(count) for name, count in _list_gpus(resources) if gpu_type in (None, name))


def _list_gpus(resources: str) -> list[tuple[str, str]]:
    """Returns the type, which may be empty, and the number of each kind of GPU in such a list."""
    return re.findall(r"gpu(?::([^:,()]+))?:(\d+)", resources)


def _parse_time_limit(limit: str) -> int | None:
    """Returns the minutes of a limit in the form [days-][hours:]minutes:seconds; None for infinite."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d\d)", limit)
    if match is None:
        return None
    days, hours, minutes, _ = (int(part or 0) for part in match.groups())
    return (days * 24 + hours) * 60 + minutes
