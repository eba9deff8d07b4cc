"""A single command is one job, which later changes of code, configuration or environment do not affect."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from slurm_cluster import SMALL_RUN, Cluster, Krill, wait_for

CUSTOM_MODEL = """
import krill
from pathlib import Path
from transformers import GPT2Config, GPT2LMHeadModel

WIDTH = 16

def build(vocab_size, max_position_embeddings, **tokens):
    Path("ran").write_text(krill.__file__)
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=vocab_size, n_positions=max_position_embeddings, n_embd=WIDTH, n_layer=1, n_head=2, **tokens
    ))
"""


def test_the_launcher_option_alone_submits(cluster: Cluster, krill: Krill) -> None:
    arguments = (
        "hydra/launcher=submitit_slurm",
        "hydra.launcher.gpus_per_node=1",
        "hydra.launcher.name=mine",
    )
    run = krill("train", *arguments, "device=cpu", *SMALL_RUN).strip()
    status = krill.status(run)
    assert run.startswith("outputs/runs/llama_pico/")
    assert status["state"] == "finished"
    accounting = cluster.run(
        "sacct", "-nPX", "-j", status["slurm_job_id"], "-o", "JobName,AllocTRES,Timelimit"
    )
    assert accounting.startswith("mine|")
    assert "gres/gpu=1" in accounting
    assert "|10:00:00" in accounting


@pytest.mark.real_jobs
def test_later_edits_of_the_code_do_not_change_a_queued_job(cluster: Cluster, krill: Krill) -> None:
    krill.add_custom_model(CUSTOM_MODEL)
    arguments = ("model=own", "hardware=slurm_gpu", *SMALL_RUN[1:], "optimizer=adamw", "detach=true")
    krill("train", "output=run", *arguments, "hardware.slurm.options.hold=true")
    assert [row["state"] for row in krill.list_runs("run")] == ["queued"]
    (krill.folder / "own.py").write_text(CUSTOM_MODEL.replace("16", "32"))
    (krill.folder / "conf" / "model" / "own.yaml").write_text("nonsense")
    krill("train", "output=run", "hardware=slurm_gpu", *SMALL_RUN, code=2)
    assert "belongs to SLURM job" in krill.messages() or "another configuration" in krill.messages()

    (jobs,) = (krill.folder / "outputs" / "jobs").glob("*/jobs.json")
    cluster.run("scontrol", "release", json.loads(jobs.read_text())["0"])
    wait_for(lambda: krill.status("run")["state"] == "finished")
    assert json.loads((krill.folder / "run" / "model" / "config.json").read_text())["n_embd"] == 16
    assert (krill.folder / "ran").read_text() == str(jobs.parent / "code" / "krill" / "__init__.py")
    assert krill.status("run")["versions"]["krill"]


def test_a_queued_run_keeps_its_folder(cluster: Cluster, krill: Krill) -> None:
    arguments = ("hardware=slurm_gpu", *SMALL_RUN, "detach=true", "hardware.slurm.options={hold: true}")
    krill("train", *arguments)
    krill("train", *arguments)  # another run, since the first one is queued
    runs = krill.list_runs("outputs/runs/llama_pico")
    assert [row["state"] for row in runs] == ["queued", "queued"]
    assert len({row["job"] for row in runs}) == 2
    for row in runs:
        krill("runs", "cancel", row["folder"])
    wait_for(lambda: {row["state"] for row in krill.list_runs("outputs/runs/llama_pico")} == {"cancelled"})


def test_a_run_that_sbatch_rejects_leaves_no_folder(krill: Krill) -> None:
    krill("train", "hardware=slurm_gpu", *SMALL_RUN, "hardware.slurm.qos=nonsense", code=2)
    assert "change hardware.slurm.qos=" in krill.messages()
    assert not list((krill.folder / "outputs").glob("runs/*/*"))


def test_dry_run_prints_the_script(cluster: Cluster, krill: Krill) -> None:
    options = "hardware.slurm.options={mail-type: END, exclusive: true}"
    more = ("hardware.slurm.account=lab", "hardware.slurm.setup=[module load cuda]", "hardware.slurm.time=2h")
    script = krill(
        "train", "hardware=slurm_node", "hardware.slurm.memory=10G", options, *more, "dry_run=true"
    )
    for line in (
        "#SBATCH --account=lab", "#SBATCH --gpus-per-node=2", "#SBATCH --ntasks-per-node=2", "#SBATCH --mem=10G",
        "#SBATCH --time=120", "#SBATCH --mail-type=END", "#SBATCH --exclusive", "#SBATCH --cpus-per-task=8",
        "#SBATCH --signal=USR2@120", "#SBATCH --requeue", "module load cuda",
    ):  # fmt: skip
        assert line in script.splitlines(), line
    assert not (krill.folder / "outputs" / "jobs").exists()
    assert not (krill.folder / "outputs" / "runs").exists()


@pytest.mark.real_jobs
def test_a_job_does_not_depend_on_the_environment_of_its_submission(
    cluster: Cluster, krill: Krill, tmp_path: Path
) -> None:
    """It is submitted from inside a job, with the outputs elsewhere, and does not inherit the environment."""
    elsewhere = tmp_path / "else where"
    (tmp_path / "outputs").rename(elsewhere)
    script = Path(sys.executable).with_name("krill-train")
    arguments = ["hardware=slurm_gpu", *SMALL_RUN, "hardware.slurm.options={export: NONE}"]
    environment = krill.environment | {"KRILL_OUTPUTS": "else where"}
    done = subprocess.run(
        ["srun", "-n", "1", script, *arguments], cwd=tmp_path, env=environment, text=True, capture_output=True,
        timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = done.stdout.splitlines()[-1]
    assert run.startswith("else where/runs/")
    assert krill.status(run)["state"] == "finished"


@pytest.mark.parametrize("command", ["train", "tokenizer"])
def test_interrupting_the_wait_leaves_the_job_running(cluster: Cluster, krill: Krill, command: str) -> None:
    arguments = SMALL_RUN if command == "train" else ()
    waiting = krill.start(command, "hardware=slurm_cpu", *arguments, "hardware.slurm.options={hold: true}")
    wait_for(lambda: "submitted   job" in krill.messages())
    waiting.send_signal(2)
    assert waiting.wait(timeout=30) == 130
    assert "the jobs continue without this command" in krill.messages()
    job = krill.messages().split("submitted   job ")[1].split()[0]
    assert "PENDING" in cluster.run("squeue", "-h", "-o", "%T", "-j", job)
    cluster.cancel(job)
