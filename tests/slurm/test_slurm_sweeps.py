"""A sweep is one job array: states are accurate, only missing points run again, and no result is lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from slurm_cluster import SMALL_RUN, SMALL_VALIDATION, Cluster, Krill, wait_for

SWEEP = Path("outputs/sweeps/llama_pico")

CUSTOM_MODEL = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

def build(vocab_size, hidden_size, **tokens):
    if (Path("failing") / str(hidden_size)).exists():
        raise ValueError("this size is bad luck")
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=vocab_size, hidden_size=hidden_size, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, **tokens,
    ))
"""


def test_a_sweep_from_an_empty_folder_ends_in_a_table(cluster: Cluster, krill: Krill) -> None:
    shutil.rmtree(krill.folder / "outputs")
    arguments = ("-m", "lr=1e-3,3e-3", "hardware=slurm_gpu", *SMALL_RUN)
    output = krill("train", *arguments)
    sweep = krill.folder / SWEEP
    assert output.splitlines() == [str(sweep)]
    assert len(list((krill.folder / "outputs" / "data").glob("python_docs-*"))) == 1, "prepared once"
    rows = krill.list_runs(str(sweep))
    assert [row["state"] for row in rows] == ["finished", "finished"]
    assert [row["overrides"][0] for row in rows] == ["lr=0.001", "lr=0.003"]
    jobs = [row["job"] for row in rows]
    assert jobs[0].endswith("_0")
    assert jobs[1].endswith("_1")
    assert cluster.final_states(*jobs) == ["COMPLETED", "COMPLETED"]
    accounting = cluster.run("sacct", "-nPX", "-j", jobs[0], "-o", "JobName,AllocTRES")
    assert accounting.startswith("llama_pico|")
    assert "gres/gpu=1" in accounting
    assert (sweep / "table.csv").is_file()

    krill("train", *arguments)  # all points are finished
    assert len(list((sweep / ".jobs").iterdir())) == 1
    krill("train", *arguments[:1], "lr=1e-3,3e-3,1e-2", *arguments[2:])
    assert sorted(path.name for path in (sweep / ".jobs" / "2").glob("*.json")) == ["0.json", "jobs.json"]


def test_every_command_can_be_submitted(cluster: Cluster, krill: Krill) -> None:
    shutil.rmtree(krill.folder / "outputs" / "data")
    krill(
        "preprocess",
        "-m",
        SMALL_VALIDATION,
        "data.num_tasks=4",
        "data.task=range(0,4)",
        "hardware=slurm_cpu",
        "name=tasks",
    )
    rows = krill.list_runs("outputs/sweeps/tasks")
    assert [row["state"] for row in rows] == ["finished"] * 4
    krill("train", "output=run", "data.num_tasks=4", *SMALL_RUN, "steps=2")
    krill("infer", "-m", "temperature=0.2,0.8", "hardware=slurm_gpu", "model=run", "max_new_tokens=4")
    answers = list((krill.folder / "outputs/sweeps/infer").glob("*/answers.jsonl"))
    assert len(answers) == 2
    assert all(file.read_text() for file in answers)
    krill("evaluate", "-m", "limit=1,2", "tasks=english_pairs", "hardware=slurm_gpu", "model=run")
    comparison = json.loads((krill.folder / "outputs/sweeps/evaluate/comparison.json").read_text())
    assert [len(ranked["rows"]) for ranked in comparison["sets"]] == [1, 1]
    output = krill(
        "infer", "hardware=slurm_gpu", "model=run", "max_new_tokens=4", "prompt=Return", "temperature=0"
    )
    assert output == krill(
        "infer", "device=cpu", "model=run", "max_new_tokens=4", "prompt=Return", "temperature=0"
    )
    report = krill("inspect", SMALL_VALIDATION, "rows=0")
    assert krill("inspect", SMALL_VALIDATION, "hardware=slurm_cpu", "rows=0").startswith(report[:200])


def test_only_failed_and_cancelled_points_run_again(cluster: Cluster, krill: Krill) -> None:
    krill.add_custom_model(CUSTOM_MODEL, options="{hidden_size: 16}")
    failing = krill.folder / "failing"
    failing.mkdir()
    (failing / "16").touch()
    arguments = (
        "-m", "model=own", "model.options.hidden_size=16,24,32,40", "hardware=slurm_gpu", *SMALL_RUN[1:], "steps=300",
        "eval_every=300", "name=four", "log_every=1", "optimizer=adamw",
    )  # fmt: skip
    sweep = Path("outputs/sweeps/four")
    sweep_process = krill.start("train", *arguments)
    points = wait_for(lambda: _find_points(krill, sweep, 4))
    for size in ("24", "32", "40"):
        wait_for(lambda size=size: krill.count_logged_steps(points[size]) > 5)
    os.kill(krill.status(points["24"])["pid"], signal.SIGKILL)
    krill("runs", "cancel", str(points["32"]))
    assert sweep_process.wait(timeout=400) == 3, krill.messages()

    rows = {row["folder"]: row for row in krill.list_runs(str(sweep))}
    row_of = {size: rows[str(krill.folder / point)] for size, point in points.items()}
    assert {size: row["state"] for size, row in row_of.items()} == {
        "16": "failed", "24": "failed", "32": "cancelled", "40": "finished",
    }  # fmt: skip
    assert "this size is bad luck" in row_of["16"]["error"]
    assert "this size is bad luck" in (krill.folder / points["16"] / "log.txt").read_text()
    states = cluster.final_states(*(row_of[size]["job"] for size in ("16", "24", "32", "40")))
    assert states == ["FAILED", "FAILED", "CANCELLED", "COMPLETED"]

    (failing / "16").unlink()
    krill("train", *arguments)
    assert len(list((krill.folder / sweep / ".jobs" / "2").glob("?.json"))) == 3, (
        "the failed and the cancelled points"
    )
    assert {row["state"] for row in krill.list_runs(str(sweep))} == {"finished"}
    assert krill.status(points["40"])["starts"] == 1


def _find_points(krill: Krill, sweep: Path, count: int) -> dict[str, Path]:
    """Returns hidden size → folder of the point, once all are submitted; empty before."""
    points = {}
    for folder in (krill.folder / sweep).glob("????????"):
        overrides = krill.status(folder).get("overrides", [])
        points |= {text.partition("=")[2]: sweep / folder.name for text in overrides if "hidden_size" in text}
    return points if len(points) == count else {}


def test_more_points_than_an_array_may_have_tasks(cluster: Cluster, krill: Krill) -> None:
    with cluster.max_array(5):
        arguments = (
            "-m", "tokenizer.vocab_size=range(300,312)", "hardware=slurm_cpu", "name=many", *krill.add_text()
        )  # fmt: skip
        script = krill("tokenizer", *arguments, "dry_run=true")
        assert [line.partition("=")[2] for line in script.splitlines() if "--array" in line] == [
            "0-4%5", "0-4%5", "0-1%2",
        ]  # fmt: skip
        krill("tokenizer", *arguments)
        rows = krill.list_runs("outputs/sweeps/many")
        assert [row["state"] for row in rows] == ["finished"] * 12
        assert len({row["job"].partition("_")[0] for row in rows}) == 3
        assert len({krill.status(row["folder"])["result"] for row in rows}) == 12


def test_jobs_continue_after_the_submitting_command_is_killed(cluster: Cluster, krill: Krill) -> None:
    sweep_process = krill.start("train", "-m", "lr=1e-3,3e-3", "hardware=slurm_gpu", *SMALL_RUN, "steps=60")
    wait_for(lambda: list((krill.folder / SWEEP).glob(".jobs/1/jobs.json")))
    sweep_process.kill()
    sweep_process.wait()
    assert {row["state"] for row in krill.list_runs(str(SWEEP))} <= {"queued", "running"}
    krill("runs", "watch", str(SWEEP), "--every", "0.5")
    assert [row["state"] for row in krill.list_runs(str(SWEEP))] == ["finished", "finished"]


def test_a_detached_sweep_returns_at_once_and_submits_no_point_twice(cluster: Cluster, krill: Krill) -> None:
    arguments = ("-m", "lr=1e-3,3e-3", "hardware=slurm_gpu", *SMALL_RUN, "steps=300", "detach=true")
    krill("train", *arguments)
    assert "submitted   2 jobs" in krill.messages()
    krill("train", *arguments)
    assert krill.messages().count("already in the queue, job") == 2
    assert len(list((krill.folder / SWEEP / ".jobs").iterdir())) == 1
    krill("runs", "cancel", str(SWEEP))
    wait_for(lambda: {row["state"] for row in krill.list_runs(str(SWEEP))} == {"cancelled"})


EXPERIMENT = """# @package _global_
defaults: [{{override /hardware: {hardware}}}]
tokenizer: {{vocab_size: {size}}}
"""


def test_a_sweep_may_have_jobs_of_different_sizes(cluster: Cluster, krill: Krill) -> None:
    experiments = krill.folder / "conf" / "experiment"
    experiments.mkdir()
    for name, hardware, size in (("small", "slurm_cpu", 300), ("large", "slurm_gpu", 310)):
        (experiments / f"{name}.yaml").write_text(EXPERIMENT.format(hardware=hardware, size=size))
    arguments = ("-m", "experiment=small,large", "name=sizes", *krill.add_text())
    script = krill("tokenizer", *arguments, "dry_run=true")
    assert script.count("#SBATCH --job-name=") == 2
    assert script.count("#SBATCH --gpus-per-node=1") == 1
    krill("tokenizer", *arguments)
    rows = krill.list_runs("outputs/sweeps/sizes")
    assert [row["state"] for row in rows] == ["finished", "finished"]
    assert len({row["job"] for row in rows}) == 2
    krill("tokenizer", "-m", "hardware=slurm_cpu,cpu", "tokenizer.vocab_size=300,310", "name=mixed", code=2)
    assert "some points are for SLURM and some for this machine" in krill.messages()


def test_a_sweep_that_sbatch_rejects_leaves_no_status(krill: Krill) -> None:
    arguments = ("-m", "lr=1e-3,3e-3", "hardware=slurm_gpu", *SMALL_RUN)
    krill("train", *arguments, "hardware.slurm.qos=nonsense", code=2)
    assert "change hardware.slurm.qos=" in krill.messages()
    assert not list((krill.folder / SWEEP).glob("*/status.json"))
    krill("train", *arguments, "hardware.slurm.partition=nonsense", code=2)
    assert "Available: gpu, short, spot, urgent" in krill.messages()


@pytest.mark.parametrize("option", ["slurm_gpu", "slurm_node"])
def test_a_job_without_a_gpu_fails_and_names_the_node(krill: Krill, option: str) -> None:
    (krill.folder / "conf" / "hardware" / "_site.yaml").unlink()
    krill("train", f"hardware={option}", *SMALL_RUN, code=1)
    assert "device=cuda: no usable CUDA device on n1" in krill.messages()
