"""The time limit and the memory of training jobs from their plans: hardware.slurm.time=auto and memory=auto.

Both are upper values. A job that needs more time saves, is requeued and resumes; with more memory it is killed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import TYPE_CHECKING

from krill.config.schema import TrainConfig
from krill.config.suggestions import suggest
from krill.device_table import Device, list_devices
from krill.errors import KrillError, UsageError
from krill.launch.cluster import query_nodes

if TYPE_CHECKING:
    from krill.launch.invocation import SubmittedJob
    from krill.plan.run_plan import RunPlan

TIME_MARGIN = 1.1
"""Factor of the longest time that is planned."""

START_MINUTES = 10
"""Minutes for the start of a job: modules, imports from a shared file system, waiting ranks."""

MIN_MINUTES = 30
"""The shortest time limit."""

MEMORY_MARGIN = 1.1
"""Factor of the memory that is planned: krill-plan is within 10 % of what was measured."""

MIN_MEMORY = 4 * 2**30
"""The smallest memory of a node in bytes: the tokens are prepared in the job, which is not planned."""

GPU_HOST_BYTES = 5 * 10**9
"""Host memory of a rank that computes on a GPU, without its model: CUDA's and torch's libraries (assumed)."""

COMPILE_HOST_BYTES = 4 * 10**9
"""Host memory of the processes that compile kernels, of each rank (assumed)."""

LOADER_BYTES = 3 * 10**8
"""Memory of a process that loads rows (hardware.workers; assumed)."""


@dataclass(frozen=True)
class TimeLimit:
    """A time limit, and where it is from."""

    minutes: int
    reason: str


@dataclass(frozen=True)
class MemoryLimit:
    """The memory of a node, and where it is from."""

    size: int
    """Bytes."""
    reason: str

    @property
    def option(self) -> str:
        """The value of sbatch's --mem."""
        return f"{-(-self.size // 2**30)}G"


@dataclass(frozen=True)
class PlannedLimits:
    """What the jobs of an array request, the most of its points; None: it is not planned."""

    time: TimeLimit | None = None
    memory: MemoryLimit | None = None


NO_LIMITS = PlannedLimits()


def plan_limits(jobs: Sequence[SubmittedJob], cpus_per_node: int, has_time: bool) -> PlannedLimits:
    """Returns what an array of `jobs` requests where time or memory is auto.

    Only krill-train is planned. Another command gets the time that it would have with null, and the memory.

    Args:
        jobs: They differ in nothing that is requested otherwise.
        cpus_per_node: The CPUs of a job on one node.
        has_time: Whether hydra.launcher has a time limit, which comes first.

    Raises:
        UsageError: a run cannot be planned; says what to type instead.
    """
    slurm = jobs[0].config.hardware.slurm
    if slurm is None or jobs[0].command != "train":
        return NO_LIMITS
    needs_time, needs_memory = slurm.time == "auto" and not has_time, slurm.memory == "auto"
    if not needs_time and not needs_memory:
        return NO_LIMITS
    plans = [plan for job in jobs for plan in _plan_job(job, cpus_per_node, needs_time)]
    return PlannedLimits(
        _plan_time(plans, slurm.save_before, len(jobs)) if needs_time else None,
        _plan_memory(plans, len(jobs)) if needs_memory else None,
    )


def _plan_time(plans: Sequence[RunPlan], save_before: int, num_points: int) -> TimeLimit:
    from krill.plan.report import format_duration

    times = [(plan, plan.time) for plan in plans if plan.time is not None]
    plan, time = max(times, key=lambda pair: pair[1].longest)
    of_points = f"the longest of {num_points} points is " if num_points > 1 else ""
    return TimeLimit(
        round_minutes(time.longest, save_before),
        f"{of_points}planned to take {format_duration(time.shortest)} to {format_duration(time.longest)} on "
        f"{plan.setting.device.name} ({time.utilization.status})",
    )


def _plan_memory(plans: Sequence[RunPlan], num_points: int) -> MemoryLimit:
    from krill.plan.report import format_bytes

    plan = max(plans, key=compute_node_bytes)
    size, ranks = compute_node_bytes(plan), plan.setting.ranks_per_node
    of_points = f"the largest of {num_points} points is " if num_points > 1 else ""
    what = "" if plan.setting.device.kind == "cpu" else "host memory, assumed; "
    count = f"{ranks} ranks with " if ranks > 1 else ""
    each = format_bytes(size / ranks) + (" each" if ranks > 1 else "")
    limit, floor = round(MEMORY_MARGIN * size), ""
    if limit < MIN_MEMORY:
        limit, floor = MIN_MEMORY, "; no job gets less"
    return MemoryLimit(limit, f"{what}{of_points}planned for {count}{each} on a node{floor}")


def round_minutes(seconds: float, save_before: int) -> int:
    """Returns a time limit for a run that takes `seconds` at most: in 10 minutes, or in hours from 10 hours on."""
    minutes = max(MIN_MINUTES, (TIME_MARGIN * seconds + save_before) / 60 + START_MINUTES)
    unit = 10 if minutes <= 600 else 60
    return int(-(-minutes // unit) * unit)


def compute_node_bytes(plan: RunPlan) -> int:
    """Returns the host memory of the ranks on one node."""
    setting, config = plan.setting, plan.config
    each = config.hardware.workers * LOADER_BYTES
    if setting.device.kind == "cpu":
        each += plan.memory.total
    else:
        # The model is built and exported in host memory, and a checkpoint is written from a copy there.
        weights = 4 * plan.architecture.parameters
        each += GPU_HOST_BYTES + weights + plan.checkpoint_bytes // setting.shard_size
        each += COMPILE_HOST_BYTES if setting.is_compiled(plan.steps) else 0
    return setting.ranks_per_node * each


def _plan_job(job: SubmittedJob, cpus_per_node: int, needs_time: bool) -> Iterator[RunPlan]:
    """Yields the plan of a training job on each device that it may get."""
    from krill.plan.run_plan import build_run_plan
    from krill.plan.text import find_training_text, find_vocab_size

    config = job.config
    assert isinstance(config, TrainConfig)
    slurm = config.hardware.slurm
    assert slurm is not None
    instead = {"time": "24h"} if needs_time else {}
    instead |= {"memory": "64G"} if slurm.memory == "auto" else {}
    try:
        vocab_size = find_vocab_size(config.tokenizer)
        text = find_training_text(config, vocab_size, lambda: job.origin.open_inputs(config))
        for device in _find_devices(config, cpus_per_node):
            plan = build_run_plan(config, vocab_size, device, text)
            if needs_time and plan.time is None:
                raise UsageError(
                    "the number of steps is known once the tokens are prepared (krill-preprocess)"
                )
            yield plan
    except KrillError as error:
        keys = " ".join(f"hardware.slurm.{key}=auto" for key in instead)
        values = " ".join(f"hardware.slurm.{key}={value}" for key, value in instead.items())
        raise UsageError(f"{keys} cannot be planned: {error}; or use {values}") from error


def _find_devices(config: TrainConfig, cpus_per_node: int) -> list[Device]:
    """Returns the devices that a rank of the job may get. Raises UsageError if one is not in the table."""
    slurm = config.hardware.slurm
    assert slurm is not None
    if not slurm.gpus:
        return [_describe_cpu_node(cpus_per_node)]
    if (name := slurm.plan_device) is not None:
        if name not in (devices := list_devices()):
            key = "hardware.slurm.plan_device"
            raise UsageError(f"{key}={name}: no such device. {suggest(name, devices, f'{key}={{}}')}")
        return [devices[name]]
    types = [slurm.gpu_type] if slurm.gpu_type else query_nodes(slurm.partition).gpu_types
    known = {name: find_device_of_type(name) for name in sorted(types)}
    if not known or None in known.values():
        unknown = ", ".join(name for name, device in known.items() if device is None)
        raise UsageError(
            f"the GPUs of the cluster are {f'of type {unknown}, which is' if unknown else 'without a type, so'} not "
            "in krill's table of devices; name them, as in hardware.slurm.plan_device=h100"
        )
    return [device for device in known.values() if device is not None]


def find_device_of_type(gpu_type: str) -> Device | None:
    """Returns the device of a GPU type by the cluster's name, such as a100 or nvidia_h100_80gb_hbm3."""
    parts = set(re.split(r"[-_.: ]", gpu_type.lower()))
    found = [
        (len(words), device)
        for name, device in list_devices().items()
        if (words := set(name.split("_"))) <= parts
    ]
    return max(found, key=itemgetter(0), default=(0, None))[1]  # h100_pcie before h100


def _describe_cpu_node(cpus: int) -> Device:
    """Returns `cpus` CPUs as fast as those of this machine, which are measured: the nodes are not known."""
    from krill.plan.setting import describe_cpu
    from krill.resources import count_cpu_cores

    cores = count_cpu_cores()
    here, share = describe_cpu(cores), cpus / cores
    peaks = {precision: share * peak for precision, peak in here.peak_flops.items()}
    return replace(here, name=f"{cpus} CPUs like those here", peak_flops=peaks)
