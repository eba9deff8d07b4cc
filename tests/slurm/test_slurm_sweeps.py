"""A sweep is one array: true states, what is missing is done again, nothing is lost."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
from conftest import SMALL, Cluster, Krill, wait_for

SWEEP = Path("outputs/sweeps/llama_pico")

OWN_MODEL = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

def build(vocab_size, hidden_size, **tokens):
    if (Path("trouble") / str(hidden_size)).exists():
        raise ValueError("this size is bad luck")
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=vocab_size, hidden_size=hidden_size, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, **tokens,
    ))
"""


def test_from_nothing_to_a_table(cluster: Cluster, krill: Krill) -> None:
    shutil.rmtree(krill.folder / "outputs")
    words = ("-m", "lr=1e-3,3e-3", "hardware=slurm_gpu", *SMALL)
    output = krill("train", *words)
    sweep = krill.folder / SWEEP
    assert output.splitlines() == [str(sweep)]
    assert len(list((krill.folder / "outputs" / "data").glob("python_docs-*"))) == 1, "made once"
    rows = krill.rows(str(sweep))
    assert [row["state"] for row in rows] == ["finished", "finished"]
    assert [row["overrides"][0] for row in rows] == ["lr=0.001", "lr=0.003"]
    jobs = [row["job"] for row in rows]
    assert jobs[0].endswith("_0")
    assert jobs[1].endswith("_1")
    assert cluster.states(*jobs) == ["COMPLETED", "COMPLETED"]
    asked = cluster.ask("sacct", "-nPX", "-j", jobs[0], "-o", "JobName,AllocTRES")
    assert asked.startswith("llama_pico|")
    assert "gres/gpu=1" in asked
    assert (sweep / "table.csv").is_file()

    krill("train", *words)  # nothing is left to do
    assert len(list((sweep / ".jobs").iterdir())) == 1
    krill("train", *words[:1], "lr=1e-3,3e-3,1e-2", *words[2:])
    assert sorted(path.name for path in (sweep / ".jobs" / "2").glob("*.json")) == ["0.json", "jobs.json"]


def test_every_command_launches(cluster: Cluster, krill: Krill) -> None:
    shutil.rmtree(krill.folder / "outputs" / "data")
    krill("preprocess", "-m", "data.num_tasks=4", "data.task=range(0,4)", "hardware=slurm_cpu", "name=tasks")
    rows = krill.rows("outputs/sweeps/tasks")
    assert [row["state"] for row in rows] == ["finished"] * 4
    krill("train", "output=run", "data.num_tasks=4", *SMALL, "steps=2")
    krill("infer", "-m", "temperature=0.2,0.8", "hardware=slurm_gpu", "model=run", "max_new_tokens=4")
    answers = list((krill.folder / "outputs/sweeps/infer").glob("*/answers.jsonl"))
    assert len(answers) == 2
    assert all(file.read_text() for file in answers)
    said = krill(
        "infer", "hardware=slurm_gpu", "model=run", "max_new_tokens=4", "prompt=Return", "temperature=0"
    )
    assert said == krill(
        "infer", "device=cpu", "model=run", "max_new_tokens=4", "prompt=Return", "temperature=0"
    )
    assert krill("inspect", "hardware=slurm_cpu", "rows=0").startswith(krill("inspect", "rows=0")[:200])


def test_three_of_four_end_badly_and_are_done_again(cluster: Cluster, krill: Krill) -> None:
    krill.own_model(OWN_MODEL, options="{hidden_size: 16}")
    trouble = krill.folder / "trouble"
    trouble.mkdir()
    (trouble / "16").touch()
    words = (
        "-m", "model=own", "model.options.hidden_size=16,24,32,40", "hardware=slurm_gpu", *SMALL[1:], "steps=300",
        "name=four", "log_every=1", "optimizer=adamw",
    )  # fmt: skip
    sweep = Path("outputs/sweeps/four")
    waiting = krill.start("train", *words)
    points = wait_for(lambda: _points(krill, sweep, 4))
    for size in ("24", "32", "40"):
        wait_for(lambda size=size: krill.lines(points[size]) > 5)
    os.kill(krill.status(points["24"])["pid"], signal.SIGKILL)
    krill("runs", "cancel", str(points["32"]))
    assert waiting.wait(timeout=300) == 3, krill.messages()

    rows = {row["folder"]: row for row in krill.rows(str(sweep))}
    truth = {size: rows[str(krill.folder / point)] for size, point in points.items()}
    assert {size: row["state"] for size, row in truth.items()} == {
        "16": "failed", "24": "failed", "32": "cancelled", "40": "finished",
    }  # fmt: skip
    assert "this size is bad luck" in truth["16"]["error"]
    assert "this size is bad luck" in (krill.folder / points["16"] / "log.txt").read_text()
    states = cluster.states(*(truth[size]["job"] for size in ("16", "24", "32", "40")))
    assert states == ["FAILED", "FAILED", "CANCELLED", "COMPLETED"]

    (trouble / "16").unlink()
    krill("train", *words)
    assert len(list((krill.folder / sweep / ".jobs" / "2").glob("?.json"))) == 3, "exactly the three"
    assert {row["state"] for row in krill.rows(str(sweep))} == {"finished"}
    assert krill.status(points["40"])["starts"] == 1


def _points(krill: Krill, sweep: Path, count: int) -> dict[str, Path]:
    """Hidden size → folder of the point, once all are submitted."""
    found = {}
    for folder in (krill.folder / sweep).glob("????????"):
        overrides = krill.status(folder).get("overrides", [])
        found |= {text.partition("=")[2]: sweep / folder.name for text in overrides if "hidden_size" in text}
    return found if len(found) == count else {}


def test_more_points_than_an_array_may_have(cluster: Cluster, krill: Krill) -> None:
    with cluster.max_array(5):
        words = ("-m", "tokenizer.vocab_size=range(300,312)", "hardware=slurm_cpu", "name=many")
        script = krill("tokenizer", *words, "dry_run=true")
        assert [line.partition("=")[2] for line in script.splitlines() if "--array" in line] == [
            "0-4%5", "0-4%5", "0-1%2",
        ]  # fmt: skip
        krill("tokenizer", *words)
        rows = krill.rows("outputs/sweeps/many")
        assert [row["state"] for row in rows] == ["finished"] * 12
        assert len({row["job"].partition("_")[0] for row in rows}) == 3
        assert len({krill.status(row["folder"])["result"] for row in rows}) == 12


def test_the_jobs_outlive_who_submitted_them(cluster: Cluster, krill: Krill) -> None:
    waiting = krill.start("train", "-m", "lr=1e-3,3e-3", "hardware=slurm_gpu", *SMALL, "steps=60")
    wait_for(lambda: list((krill.folder / SWEEP).glob(".jobs/1/jobs.json")))
    waiting.kill()
    waiting.wait()
    assert {row["state"] for row in krill.rows(str(SWEEP))} <= {"queued", "running"}
    krill("runs", "watch", str(SWEEP), "--every", "0.5")
    assert [row["state"] for row in krill.rows(str(SWEEP))] == ["finished", "finished"]


def test_detached_it_returns_at_once_and_submits_nothing_twice(cluster: Cluster, krill: Krill) -> None:
    words = ("-m", "lr=1e-3,3e-3", "hardware=slurm_gpu", *SMALL, "steps=300", "detach=true")
    krill("train", *words)
    assert "submitted   2 jobs" in krill.messages()
    krill("train", *words)
    assert krill.messages().count("in the queue already, job") == 2
    assert len(list((krill.folder / SWEEP / ".jobs").iterdir())) == 1
    krill("runs", "cancel", str(SWEEP))
    wait_for(lambda: {row["state"] for row in krill.rows(str(SWEEP))} == {"cancelled"})


EXPERIMENT = """# @package _global_
defaults: [{{override /hardware: {hardware}}}]
tokenizer: {{vocab_size: {size}}}
"""


def test_what_is_swept_may_be_the_size_of_the_jobs(cluster: Cluster, krill: Krill) -> None:
    experiments = krill.folder / "conf" / "experiment"
    experiments.mkdir()
    for name, hardware, size in (("small", "slurm_cpu", 300), ("large", "slurm_gpu", 310)):
        (experiments / f"{name}.yaml").write_text(EXPERIMENT.format(hardware=hardware, size=size))
    words = ("-m", "experiment=small,large", "name=sizes")
    script = krill("tokenizer", *words, "dry_run=true")
    assert script.count("#SBATCH --job-name=") == 2
    assert script.count("#SBATCH --gpus-per-node=1") == 1
    krill("tokenizer", *words)
    rows = krill.rows("outputs/sweeps/sizes")
    assert [row["state"] for row in rows] == ["finished", "finished"]
    assert len({row["job"] for row in rows}) == 2
    krill("tokenizer", "-m", "hardware=slurm_cpu,cpu", "tokenizer.vocab_size=300,310", "name=mixed", code=2)
    assert "some points are for SLURM and some for this machine" in krill.messages()


def test_what_sbatch_refuses_leaves_nothing_behind(krill: Krill) -> None:
    words = ("-m", "lr=1e-3,3e-3", "hardware=slurm_gpu", *SMALL)
    krill("train", *words, "hardware.slurm.qos=nonsense", code=2)
    assert "change hardware.slurm.qos=" in krill.messages()
    assert not list((krill.folder / SWEEP).glob("*/status.json"))
    krill("train", *words, "hardware.slurm.partition=nonsense", code=2)
    assert "there are: gpu, short, spot, urgent" in krill.messages()


@pytest.mark.parametrize("option", ["slurm_gpu", "slurm_node"])
def test_without_a_gpu_the_job_fails_and_names_the_node(krill: Krill, option: str) -> None:
    (krill.folder / "conf" / "hardware" / "_site.yaml").unlink()
    krill("train", f"hardware={option}", *SMALL, code=1)
    assert "device=cuda: no usable CUDA device on n1" in krill.messages()
