"""A process that SLURM started: its place among the ranks, and its way back into the queue."""

from __future__ import annotations

import os
import random
import signal

from krill.runs.slurm import run_slurm_command


def export_torchrun_env() -> None:
    """Say in the environment which rank this task of srun is, as torchrun would; nothing where it is alone.

    A batch script has these variables, too, but for those of a step: it is no rank.
    """
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1)
    if tasks == 1 or "RANK" in os.environ or "SLURM_PROCID" not in os.environ:
        return
    nodes = run_slurm_command("scontrol", "show", "hostnames", os.environ["SLURM_STEP_NODELIST"])
    of_node = tasks // len(nodes)
    local = int(os.environ["SLURM_LOCALID"])
    if gpus := os.environ.get("CUDA_VISIBLE_DEVICES"):
        local %= gpus.count(",") + 1  # where each task sees its own alone
    # As submitit does: any port that every task finds without asking.
    port = random.Random(os.environ["SLURM_JOB_ID"]).randint(20000, 60000)
    os.environ |= {
        "RANK": os.environ["SLURM_PROCID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_RANK": str(local),
        "LOCAL_WORLD_SIZE": str(of_node),
        "MASTER_ADDR": nodes[0],
        "MASTER_PORT": str(port),
    }


def requeue_job(received: signal.Signals | None, requeues: int) -> str | None:
    """Have SLURM start this job again when its time ran out, or others have precedence; what is done is saved.

    Returns what was done, None: nothing. What SLURM takes the nodes from at once it starts again by itself; a job
    that has time to save, and ends, would count as ended. One that somebody cancelled stays so.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or os.environ.get("SLURM_PROCID", "0") != "0":
        return None
    told = " ".join(run_slurm_command("scontrol", "show", "job", "--oneliner", job))
    fields = dict(word.split("=", 1) for word in told.split() if "=" in word)
    started = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    if fields.get("JobState") != "RUNNING" or int(fields.get("Restarts", started)) != started:
        return None
    if received == signal.SIGTERM and fields.get("PreemptTime", "None") == "None":
        return None
    if started >= requeues:
        return f"job {job} has been started again {started} times (hardware.slurm.requeues); give the command again"
    run_slurm_command("scontrol", "requeue", job)
    return f"job {job} is in the queue again"
