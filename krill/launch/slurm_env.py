"""The environment of a process that SLURM started: its rank, and requeueing its job."""

from __future__ import annotations

import itertools
import os
import random
import re
import signal

from krill.errors import UsageError
from krill.runs.slurm import run_slurm_command

PORTS = range(20000, 30000)
"""Below the ports that Linux gives to outgoing connections (32768 to 60999)."""


def export_torchrun_env() -> None:
    """Sets torchrun's variables for this task of srun, unless it is the only one.

    A batch script has SLURM's variables too, except those of a step: it is not a rank.
    """
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1)
    if tasks == 1 or "RANK" in os.environ or "SLURM_PROCID" not in os.environ:
        return
    nodes = expand_node_list(os.environ["SLURM_STEP_NODELIST"])
    tasks_per_node = tasks // len(nodes)
    local = int(os.environ["SLURM_LOCALID"])
    if gpus := os.environ.get("CUDA_VISIBLE_DEVICES"):
        local %= gpus.count(",") + 1  # each task may see its own GPUs only
    # As submitit does: a port that every task computes without communication.
    step = f"{os.environ['SLURM_JOB_ID']}.{os.environ.get('SLURM_STEP_ID', '0')}"
    port = random.Random(step).choice(PORTS)
    os.environ |= {
        "RANK": os.environ["SLURM_PROCID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_RANK": str(local),
        "LOCAL_WORLD_SIZE": str(tasks_per_node),
        "MASTER_ADDR": nodes[0],
        "MASTER_PORT": str(port),
    }


def expand_node_list(text: str) -> list[str]:
    """Returns the names in a node list of SLURM, in its order: n[1-2,07],login → n1, n2, n07, login.

    Containers often lack `scontrol show hostnames`, which does the same. Raises UsageError for another text.
    """
    names = []
    for entry in re.findall(r"(?:[^,\[\]]|\[[^\[\]]*\])+", text):
        parts = re.split(r"\[(.*?)\]", entry)  # text and lists of ranges in turn
        try:
            choices = [_expand_ranges(part) if i % 2 else [part] for i, part in enumerate(parts)]
        except ValueError:
            raise UsageError(
                f"SLURM_STEP_NODELIST={text}: {entry} is not a list of nodes such as n[1-2]"
            ) from None
        names += ["".join(choice) for choice in itertools.product(*choices)]
    return names


def _expand_ranges(text: str) -> list[str]:
    """Expands 1-3,07 to 1, 2, 3, 07; numbers keep the zeros of the first of a range."""
    numbers = []
    for item in text.split(","):
        first, _, last = item.partition("-")
        numbers += [f"{number:0{len(first)}d}" for number in range(int(first), int(last or first) + 1)]
    return numbers


def requeue_job(received: signal.Signals | None, max_requeues: int) -> str | None:
    """Requeues this job after `received` at its time limit or a preemption; its state is saved.

    Returns a message for the log; None: the job is not requeued. SLURM itself requeues a job that is preempted
    without notice; one that has time to save and exits would count as ended. A cancelled job stays cancelled.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or os.environ.get("SLURM_PROCID", "0") != "0":
        return None
    try:
        return _requeue_running_job(job, received, max_requeues)
    except UsageError as error:  # the state is saved, and the exit code of the interrupted command says so
        return f"job {job} was not requeued ({error}); run the same command to resume"


def _requeue_running_job(job: str, received: signal.Signals | None, max_requeues: int) -> str | None:
    description = " ".join(run_slurm_command("scontrol", "show", "job", "--oneliner", job))
    fields = dict(field.split("=", 1) for field in description.split() if "=" in field)
    requeues = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    if fields.get("JobState") != "RUNNING" or int(fields.get("Restarts", requeues)) != requeues:
        return None
    if received == signal.SIGTERM and fields.get("PreemptTime", "None") == "None":
        return None
    if requeues >= max_requeues:
        return (
            f"job {job} was requeued {requeues} times (hardware.slurm.requeues); "
            "run the same command to resume"
        )
    run_slurm_command("scontrol", "requeue", job)
    return f"job {job} was requeued"
