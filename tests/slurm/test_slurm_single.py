"""A command that is no sweep: one job, which nothing that happens here changes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SMALL, Cluster, Krill, wait_for

OWN_MODEL = """
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


def test_the_launcher_alone_submits_too(cluster: Cluster, krill: Krill) -> None:
    words = ("hydra/launcher=submitit_slurm", "hydra.launcher.gpus_per_node=1", "hydra.launcher.name=mine")
    run = krill("train", *words, "device=cpu", *SMALL).strip()
    status = krill.status(run)
    assert run.startswith("outputs/runs/llama_pico/")
    assert status["state"] == "finished"
    told = cluster.ask("sacct", "-nPX", "-j", status["slurm_job_id"], "-o", "JobName,AllocTRES,Timelimit")
    assert told.startswith("mine|")
    assert "gres/gpu=1" in told
    assert "|10:00:00" in told


def test_code_that_is_edited_while_it_waits_does_not_change_it(cluster: Cluster, krill: Krill) -> None:
    krill.own_model(OWN_MODEL)
    words = ("model=own", "hardware=slurm_gpu", *SMALL[1:], "optimizer=adamw", "detach=true")
    krill("train", "output=run", *words, "hardware.slurm.options.hold=true")
    assert [row["state"] for row in krill.rows("run")] == ["queued"]
    (krill.folder / "own.py").write_text(OWN_MODEL.replace("16", "32"))
    (krill.folder / "conf" / "model" / "own.yaml").write_text("nonsense")
    krill("train", "output=run", "hardware=slurm_gpu", *SMALL, code=2)
    assert "belongs to SLURM job" in krill.messages() or "another configuration" in krill.messages()

    (jobs,) = (krill.folder / "outputs" / "jobs").glob("*/jobs.json")
    cluster.ask("scontrol", "release", json.loads(jobs.read_text())["0"])
    wait_for(lambda: krill.status("run")["state"] == "finished")
    assert json.loads((krill.folder / "run" / "model" / "config.json").read_text())["n_embd"] == 16
    assert (krill.folder / "ran").read_text() == str(jobs.parent / "code" / "krill" / "__init__.py")
    assert krill.status("run")["versions"]["krill"]


def test_its_folder_is_not_given_twice(cluster: Cluster, krill: Krill) -> None:
    words = ("hardware=slurm_gpu", *SMALL, "detach=true", "hardware.slurm.options={hold: true}")
    krill("train", *words)
    krill("train", *words)  # the first one waits: this is another run
    rows = krill.rows("outputs/runs/llama_pico")
    assert [row["state"] for row in rows] == ["queued", "queued"]
    assert len({row["job"] for row in rows}) == 2
    for row in rows:
        krill("runs", "cancel", row["folder"])
    wait_for(lambda: {row["state"] for row in krill.rows("outputs/runs/llama_pico")} == {"cancelled"})


def test_what_sbatch_refuses_leaves_no_folder(krill: Krill) -> None:
    krill("train", "hardware=slurm_gpu", *SMALL, "hardware.slurm.qos=nonsense", code=2)
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


def test_what_it_was_typed_in_does_not_matter(cluster: Cluster, krill: Krill, tmp_path: Path) -> None:
    """From inside a job, with the outputs elsewhere, and nothing of the environment handed on."""
    elsewhere = tmp_path / "else where"
    (tmp_path / "outputs").rename(elsewhere)
    script = Path(sys.executable).with_name("krill-train")
    words = ["hardware=slurm_gpu", *SMALL, "hardware.slurm.options={export: NONE}"]
    environment = krill.environment | {"KRILL_OUTPUTS": "else where"}
    done = subprocess.run(
        ["srun", "-n", "1", script, *words], cwd=tmp_path, env=environment, text=True, capture_output=True,
        timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = done.stdout.splitlines()[-1]
    assert run.startswith("else where/runs/")
    assert krill.status(run)["state"] == "finished"


@pytest.mark.parametrize("command", ["train", "tokenizer"])
def test_who_interrupts_the_waiting_is_told_that_the_job_goes_on(
    cluster: Cluster, krill: Krill, command: str
) -> None:
    words = SMALL if command == "train" else ()
    waiting = krill.start(command, "hardware=slurm_cpu", *words, "hardware.slurm.options={hold: true}")
    wait_for(lambda: "submitted   job" in krill.messages())
    waiting.send_signal(2)
    assert waiting.wait(timeout=30) == 130
    assert "the jobs go on without this command" in krill.messages()
    job = krill.messages().split("submitted   job ")[1].split()[0]
    assert "PENDING" in cluster.ask("squeue", "-h", "-o", "%T", "-j", job)
    cluster.cancel(job)
