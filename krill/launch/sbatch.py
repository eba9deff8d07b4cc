"""One array of SLURM jobs: the script, and handing it in. submitit writes the one and does the other."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from krill import atomic
from krill.config.schema import HardwareConfig
from krill.errors import UsageError
from krill.launch.cluster import MINUTES_PER_DAY, query_max_array_size, query_nodes, require_slurm
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
"""Word in what sbatch says → what to change."""


def build_sbatch_parameters(
    hardware: HardwareConfig, launcher: Mapping[str, Any], name: str, trains: bool
) -> dict[str, Any]:
    """What is asked of SLURM, in submitit's words: hardware.slurm, but for what hydra.launcher sets."""
    slurm, asks = hardware.slurm, dict[str, Any](job_name=name, requeue=True)
    set_there = {
        _HYDRA_TO_SUBMITIT.get(key, key): value for key, value in launcher.items() if value is not None
    }
    partition = set_there.get("partition", slurm.partition if slurm else None)
    nodes = query_nodes(partition, slurm.gpu_type if slurm else None)
    longest = min(MINUTES_PER_DAY, nodes.time_limit_minutes or MINUTES_PER_DAY)
    if slurm is None:
        asks |= {"time": longest}
    else:
        tasks = hardware.processes if trains else 1
        assert tasks != "auto"
        gpus = tasks * slurm.gpus
        minutes = longest if slurm.time == "auto" else slurm.time
        asks |= {
            "nodes": slurm.nodes if trains else 1,
            "ntasks_per_node": tasks,
            "gpus_per_node": (f"{slurm.gpu_type}:{gpus}" if slurm.gpu_type else gpus) if gpus else None,
            "cpus_per_task": _resolve_cpus(slurm.cpus, slurm.gpus, nodes.min_cpus, max(nodes.gpu_counts)),
            "mem": slurm.memory,
            "time": minutes,
            "signal_delay_s": min(slurm.save_before, minutes * 20),
            "partition": partition,
            "account": slurm.account,
            "qos": slurm.qos,
            "constraint": slurm.constraint,
            "setup": slurm.setup,
            **slurm.options,
        }
    return {key: value for key, value in (asks | set_there).items() if value is not None}


def _resolve_cpus(asked_for: str | int, gpus: int, of_node: int, gpus_of_node: int) -> int:
    if isinstance(asked_for, int):
        return asked_for
    return max(1, of_node * gpus // max(gpus, gpus_of_node)) if gpus else min(8, of_node)


_HYDRA_TO_SUBMITIT = {
    "name": "job_name", "tasks_per_node": "ntasks_per_node", "mem_gb": "mem", "timeout_min": "time"
}  # fmt: skip
"""Words of hydra-submitit-launcher → those of submitit's executor for SLURM."""


class Submission:
    """A folder with `count` jobs that are alike but for their index, as arrays of what the cluster allows."""

    def __init__(
        self, folder: Path, words: list[str], asks: Mapping[str, Any], count: int, slots: int | None = None
    ):
        """`words`: the command of a job, which gets two more: the index that its array begins with, which it adds to
        SLURM_ARRAY_TASK_ID, and slurm. `slots`: jobs of an array that run at once, None: as many as may."""
        require_slurm()
        self.folder, self.command, self.count = folder, words, count
        self.parameters = {"array_parallelism": slots or count} | dict(asks)
        size = query_max_array_size()
        self.arrays = [(first, min(size, count - first)) for first in range(0, count, size)]

    def render_scripts(self) -> list[str]:
        """What sbatch will be given."""
        return [
            self._build_executor(tasks)._make_submission_file_text(self._build_command(first), "")
            for first, tasks in self.arrays
        ]

    def submit(self) -> dict[str, str]:
        """Hand in; index → number of the job, also in jobs.json. Raises UsageError that says what to change."""
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
            of_part = {
                str(first + task): f"{number}_{task}" if tasks > 1 else number for task in range(tasks)
            }
            jobs |= of_part
            atomic.write_json(self.folder / JOBS_FILE, jobs)
        return jobs

    def _build_command(self, first: int) -> str:
        return shlex.join([*self.command, str(first), "slurm"])

    def _build_executor(self, tasks: int) -> Any:
        from submitit import SlurmExecutor

        executor = SlurmExecutor(self.folder)
        known = executor._valid_parameters()
        plain = {key: value for key, value in self.parameters.items() if key in known}
        others = {key.replace("_", "-"): value for key, value in self.parameters.items() if key not in known}
        # Ranks that are done first do not end one that still saves.
        srun = ["--kill-on-bad-exit=0", "--wait=120"]
        if "cpus_per_task" in self.parameters:
            srun.append(f"--cpus-per-task={self.parameters['cpus_per_task']}")  # srun does not take sbatch's
        executor.update_parameters(
            **plain
            | {
                "setup": [*_build_exports(self.folder), *self.parameters.get("setup", [])],
                "srun_args": srun,
                "wckey": None,
                "additional_parameters": others | plain.get("additional_parameters", {}),
            }
        )
        if tasks > 1:
            executor.parameters["map_count"] = tasks
        return executor


@contextmanager
def _clean_job_environment() -> Iterator[None]:
    """What a job leaves in the environment would change one that is submitted from it; where SLURM is stays."""
    from submitit.helpers import clean_env

    place = {key: value for key, value in os.environ.items() if key == "SLURM_CONF"}
    with clean_env():
        os.environ.update(place)
        yield


def _build_exports(folder: Path) -> list[str]:
    """Lines that let a job see what the command line saw, whatever the cluster hands on, and the code as it was."""
    paths = [str(folder / "code"), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    handed_on = {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONSAFEPATH": "1",
        "KRILL_CODE": str(folder / "code"),
        "KRILL_OUTPUTS": os.environ.get("KRILL_OUTPUTS"),
    }
    return [f"export {key}={shlex.quote(value)}" for key, value in handed_on.items() if value]


def build_job_command(module: str, folder: Path) -> list[str]:
    """The words that run `module` on the jobs of a folder, by this very Python."""
    return [sys.executable, "-u", "-m", module, str(folder)]


def _explain_refusal(said: str) -> str:
    lines = [line.partition("error: ")[2] or line for line in said.splitlines() if "error" in line.lower()]
    reason = (lines or said.strip().splitlines() or ["refused"])[-1].strip()
    hint = next((hint for word, hint in REFUSAL_HINTS if word in reason.lower()), None)
    return reason + (f"; change {hint}" if hint else "")


def _describe_submitted(jobs: Mapping[str, str]) -> str:
    arrays = ", ".join(dict.fromkeys(job.partition("_")[0] for job in jobs.values()))
    return f" (submitted before: {arrays})" if arrays else ""
