"""Arrays of SLURM jobs: their sbatch scripts and their submission, both through submitit."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from krill.checksum import write_checksummed_json
from krill.config.schema import HardwareConfig
from krill.errors import UsageError
from krill.launch.cluster import MINUTES_PER_DAY, query_max_array_size, query_nodes, require_slurm
from krill.launch.planned_limits import NO_LIMITS, PlannedLimits
from krill.runs.slurm import JOBS_FILE

REFUSAL_HINTS = (
    ("partition", "hardware.slurm.partition= (sinfo shows them)"),
    ("qos", "hardware.slurm.qos="),
    ("account", "hardware.slurm.account="),
    ("node configuration", "hardware.processes=, hardware.slurm.gpus=, cpus= or memory="),
    ("memory", "hardware.slurm.memory="),
    ("time limit", "hardware.slurm.time="),
    ("feature", "hardware.slurm.constraint="),
)
"""Word in an error of sbatch → the key to change."""


def build_sbatch_parameters(
    hardware: HardwareConfig,
    launcher_options: Mapping[str, Any],
    name: str,
    is_training: bool,
    starts_ranks: bool = False,
    planned: PlannedLimits = NO_LIMITS,
) -> dict[str, Any]:
    """Returns the parameters of submitit's SlurmExecutor: hardware.slurm, overridden by hydra.launcher.

    `is_training`: each task is a rank. `starts_ranks`: the one task starts hardware.processes ranks itself.
    `planned`: the values of time=auto and memory=auto; a job does not ask for more time than the partition allows.
    """
    slurm, parameters = hardware.slurm, dict[str, Any](job_name=name, requeue=True)
    overrides = rename_launcher_options(launcher_options)
    partition = overrides.get("partition", slurm.partition if slurm else None)
    nodes = query_nodes(partition, slurm.gpu_type if slurm else None)
    default_minutes = min(MINUTES_PER_DAY, nodes.time_limit_minutes or MINUTES_PER_DAY)
    if slurm is None:
        parameters |= {"time": default_minutes}
    else:
        tasks = hardware.processes if is_training else 1
        assert tasks != "auto"
        ranks_per_task = hardware.processes if starts_ranks else 1
        assert ranks_per_task != "auto"
        gpus = tasks * ranks_per_task * slurm.gpus
        minutes = slurm.time if isinstance(slurm.time, int) else default_minutes
        if planned.time is not None:
            minutes = min(planned.time.minutes, nodes.time_limit_minutes or planned.time.minutes)
        parameters |= {
            "nodes": slurm.nodes if is_training else 1,
            "ntasks_per_node": tasks,
            "gpus_per_node": (f"{slurm.gpu_type}:{gpus}" if slurm.gpu_type else gpus) if gpus else None,
            "cpus_per_task": ranks_per_task
            * _resolve_cpus(slurm.cpus, slurm.gpus, nodes.min_cpus, max(nodes.gpu_counts)),
            "mem": _get_memory_option(slurm.memory, planned),
            "time": minutes,
            "signal_delay_s": min(slurm.save_before, minutes * 20),
            "partition": partition,
            "account": slurm.account,
            "qos": slurm.qos,
            "constraint": slurm.constraint,
            "setup": slurm.setup,
            **slurm.options,
        }
    return {key: value for key, value in (parameters | overrides).items() if value is not None}


def _get_memory_option(requested: str | None, planned: PlannedLimits) -> str | None:
    """Returns the value of --mem; None: the cluster decides, as where auto is not planned."""
    if requested != "auto":
        return requested
    return planned.memory.option if planned.memory is not None else None


def rename_launcher_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of hydra.launcher that are set, by their names in submitit."""
    return {_HYDRA_TO_SUBMITIT.get(key, key): value for key, value in options.items() if value is not None}


def _resolve_cpus(requested: str | int, gpus: int, node_cpus: int, node_gpus: int) -> int:
    """Returns the CPUs of a task; auto: the share of the node that its GPUs are, or up to 8 without GPUs."""
    if isinstance(requested, int):
        return requested
    return max(1, node_cpus * gpus // max(gpus, node_gpus)) if gpus else min(8, node_cpus)


_HYDRA_TO_SUBMITIT = {
    "name": "job_name", "tasks_per_node": "ntasks_per_node", "mem_gb": "mem", "timeout_min": "time"
}  # fmt: skip
"""Parameter of hydra-submitit-launcher → parameter of submitit's SlurmExecutor."""


class Submission:
    """Jobs that differ only in their index, in as few arrays as the cluster allows."""

    def __init__(
        self,
        folder: Path,
        command: list[str],
        parameters: Mapping[str, Any],
        num_jobs: int,
        max_parallel: int | None = None,
    ):
        """`command`: of a job, without its last two arguments: the first index of its array, to which it adds
        SLURM_ARRAY_TASK_ID, and `slurm`. `max_parallel`: jobs of an array that run at once; None: unlimited.

        Raises UsageError if this machine has no SLURM.
        """
        require_slurm()
        self.folder, self.command = folder, command
        self.parameters = {"array_parallelism": max_parallel or num_jobs} | dict(parameters)
        size = query_max_array_size()
        self.arrays = [(first, min(size, num_jobs - first)) for first in range(0, num_jobs, size)]

    def render_scripts(self) -> list[str]:
        """Returns the script of each array."""
        return [
            self._build_executor(tasks)._make_submission_file_text(self._build_command(first), "")
            for first, tasks in self.arrays
        ]

    def submit(self) -> dict[str, str]:
        """Submits the arrays. Returns index → number of the job, which jobs.json gets too.

        Raises UsageError with the error of sbatch and the key to change.
        """
        from submitit.core.utils import FailedJobError

        jobs: dict[str, str] = {}
        for first, tasks in self.arrays:
            try:
                with _clean_job_environment():
                    number = self._build_executor(tasks)._submit_command(self._build_command(first)).job_id
            except FailedJobError as error:
                raise UsageError(
                    f"sbatch: {_explain_refusal(str(error))}{_describe_submitted(jobs)}"
                ) from error
            jobs |= {str(first + task): f"{number}_{task}" if tasks > 1 else number for task in range(tasks)}
            write_checksummed_json(self.folder / JOBS_FILE, jobs)
        return jobs

    def _build_command(self, first: int) -> str:
        return shlex.join([*self.command, str(first), "slurm"])

    def _build_executor(self, tasks: int) -> Any:
        from submitit import SlurmExecutor

        executor = SlurmExecutor(self.folder)
        known = executor._valid_parameters()
        parameters = {key: value for key, value in self.parameters.items() if key in known}
        others = {key.replace("_", "-"): value for key, value in self.parameters.items() if key not in known}
        # Ranks that exit first must not end one that is still saving.
        srun = ["--kill-on-bad-exit=0", "--wait=120"]
        if "cpus_per_task" in self.parameters:
            srun.append(
                f"--cpus-per-task={self.parameters['cpus_per_task']}"
            )  # srun does not inherit it from sbatch
        executor.update_parameters(
            **parameters
            | {
                "setup": [*_build_exports(self.folder), *self.parameters.get("setup", [])],
                "srun_args": srun,
                "wckey": None,
                "additional_parameters": others | parameters.get("additional_parameters", {}),
            }
        )
        if tasks > 1:
            executor.parameters["map_count"] = tasks
        return executor


@contextmanager
def _clean_job_environment() -> Iterator[None]:
    """Removes the variables of a job, which would change a job submitted from it, for a context; SLURM_CONF stays."""
    from submitit.helpers import clean_env

    preserved = {key: value for key, value in os.environ.items() if key == "SLURM_CONF"}
    with clean_env():
        os.environ.update(preserved)
        yield


def _build_exports(folder: Path) -> list[str]:
    """Returns shell lines that set PYTHONPATH with the snapshot of the code, and krill's variables, in a job."""
    paths = [str(folder / "code"), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    variables = {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONSAFEPATH": "1",
        "KRILL_CODE": str(folder / "code"),
        "KRILL_OUTPUTS": os.environ.get("KRILL_OUTPUTS"),
    }
    return [f"export {key}={shlex.quote(value)}" for key, value in variables.items() if value]


def build_job_command(module: str, folder: Path) -> list[str]:
    """Returns the command that runs `module` with this Python on the job files in `folder`."""
    return [sys.executable, "-u", "-m", module, str(folder)]


def _explain_refusal(message: str) -> str:
    lines = [line.partition("error: ")[2] or line for line in message.splitlines() if "error" in line.lower()]
    reason = (lines or message.strip().splitlines() or ["refused"])[-1].strip()
    hint = next((hint for word, hint in REFUSAL_HINTS if word in reason.lower()), None)
    return reason + (f"; change {hint}" if hint else "")


def _describe_submitted(jobs: Mapping[str, str]) -> str:
    arrays = ", ".join(dict.fromkeys(job.partition("_")[0] for job in jobs.values()))
    return (
        f"; arrays submitted already: {arrays} (cancel: scancel {arrays.replace(', ', ' ')}; the same command "
        "submits the rest)"
        if arrays
        else ""
    )
