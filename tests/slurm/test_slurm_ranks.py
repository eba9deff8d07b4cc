"""Ranks that are tasks of a SLURM job: one run folder, the losses of a single process, the failing rank is named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from console import get_forked_starts
from slurm_cluster import SMALL_RUN, Cluster, Krill

EXACT_RUN = (
    *SMALL_RUN[:3],
    "steps=20",
    "eval_every=20",
    "log_every=1",
    "hardware.threads=1",
    "rule=off",
    "optimizer.ns_dtype=fp32",
)

FAILS_ON_RANK_3 = """
import os
from transformers import GPT2Config, GPT2LMHeadModel

class Model(GPT2LMHeadModel):
    steps = 0
    def forward(self, input_ids=None, position_ids=None, **rest):
        Model.steps += 1
        if os.environ.get("RANK") == "3" and Model.steps > 3:
            raise ValueError("a bad cable")
        return super().forward(input_ids=input_ids, position_ids=position_ids, **rest)

def build(vocab_size, max_position_embeddings, **tokens):
    return Model(GPT2Config(
        vocab_size=vocab_size, n_positions=max_position_embeddings, n_embd=16, n_layer=1, n_head=2, **tokens
    ))
"""


def read_losses(krill: Krill, run: str) -> list[float]:
    lines = map(json.loads, (krill.folder / run / "metrics.jsonl").read_text().splitlines())
    return [value for line in lines for key, value in line.items() if key in ("loss", "eval_loss")]


def test_two_nodes_of_two_tasks_are_one_run(cluster: Cluster, krill: Krill) -> None:
    krill("train", "output=nodes", "hardware=slurm_nodes", "batch.micro_batch_size=2", *EXACT_RUN)
    krill("train", "output=single", "device=cpu", "batch.micro_batch_size=8", *EXACT_RUN)
    assert read_losses(krill, "nodes") == pytest.approx(read_losses(krill, "single"), rel=1e-5)
    assert len(read_losses(krill, "single")) == 21
    job = krill.status("nodes")["slurm_job_id"]
    assert "node=2" in cluster.run("sacct", "-nPX", "-j", job, "-o", "AllocTRES")
    assert cluster.final_states(job) == ["COMPLETED"]
    assert not list((krill.folder / "outputs").glob("runs/*")), "one run folder"


def test_tasks_of_the_users_own_srun_are_the_ranks(cluster: Cluster, krill: Krill) -> None:
    script = Path(sys.executable).with_name("krill-train")
    arguments = [script, "output=run", "device=cpu", "batch.micro_batch_size=2", *EXACT_RUN]
    srun = ["srun", "--nodes=2", "--ntasks=4", "--cpus-per-task=1"]
    done = subprocess.run(
        [*srun, *arguments],
        cwd=krill.folder,
        env=krill.environment | get_forked_starts(krill.folder, krill.environment),
        text=True,
        capture_output=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "run\n"
    assert "4 ranks" in done.stderr
    assert krill.status("run")["state"] == "finished"


def test_the_rank_that_failed_first_is_named(cluster: Cluster, krill: Krill) -> None:
    krill.add_custom_model(FAILS_ON_RANK_3)
    arguments = (
        "model=own",
        "hardware=slurm_nodes",
        *SMALL_RUN[1:-2],
        "steps=50",
        "optimizer=adamw",
    )
    krill("train", "output=run", *arguments, code=1)
    status = krill.status("run")
    assert status["state"] == "failed"
    assert status["error"] == "rank 3: ValueError: a bad cable (on n2)"
    assert cluster.final_states(status["slurm_job_id"]) == ["FAILED"]
