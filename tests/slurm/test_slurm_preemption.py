"""A run resumes automatically after preemption, a time limit or a requeue, and ends with the same bytes."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
from slurm_cluster import SMALL_RUN, Cluster, Krill, wait_for

LONG_RUN = (*SMALL_RUN[:-2], "steps=400", "eval_every=400", "save_every=400", "log_every=5")
SLOW_RUN = ("model=own", "optimizer=adamw", *SMALL_RUN[1:-2], "log_every=1")
"""Overrides of a run of SLOW_MODEL."""

SLOW_MODEL = """
import os
import time
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

class Model(LlamaForCausalLM):
    def forward(self, input_ids=None, position_ids=None, **rest):
        if self.training and Path("slow").exists():
            starts, seconds = Path("slow").read_text().split()
            if int(os.environ.get("SLURM_RESTART_COUNT") or 0) < int(starts):
                time.sleep(float(seconds))
        return super().forward(input_ids=input_ids, position_ids=position_ids, **rest)

def build(vocab_size, **tokens):
    return Model(LlamaConfig(
        vocab_size=vocab_size, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        **tokens,
    ))
"""


def add_slow_model(krill: Krill, starts: int, seconds: float) -> None:
    """Adds model=own, a step of which takes at least `seconds` in the first `starts` starts of a job."""
    krill.add_custom_model(SLOW_MODEL)
    (krill.folder / "slow").write_text(f"{starts} {seconds}")


def read_weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


PREEMPTED_RUN = (*SLOW_RUN, "steps=60", "eval_every=60", "save_every=60")


@pytest.fixture(scope="module")
def uninterrupted_weights(prepared_outputs: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    (folder / "outputs").symlink_to(prepared_outputs)
    (folder / "conf").mkdir()
    krill = Krill(folder)
    krill.add_custom_model(SLOW_MODEL)
    krill("train", "output=run", "device=cpu", *PREEMPTED_RUN)
    return read_weights(folder / "run")


@pytest.mark.parametrize(
    ("mode", "preemptions"),
    [
        pytest.param("at once", 1, marks=pytest.mark.real_jobs),
        ("with grace", 2),
        ("without the user signal", 1),
    ],
)
def test_a_preempted_run_ends_with_the_same_weights(
    cluster: Cluster, krill: Krill, uninterrupted_weights: bytes, mode: str, preemptions: int
) -> None:
    partition = "spot" if mode == "with grace" else "gpu"
    has_signal = mode != "without the user signal"
    add_slow_model(krill, preemptions, seconds=0.2)
    with nullcontext() if has_signal else cluster.user_signal(False):
        waiting = krill.start(
            "train",
            "output=run",
            "hardware=slurm_gpu",
            f"hardware.slurm.partition={partition}",
            *PREEMPTED_RUN,
        )
        for start in range(1, preemptions + 1):
            first_step = wait_for(
                lambda start=start: (
                    krill.status("run").get("starts") == start and krill.count_logged_steps("run") + 1
                )
            )
            wait_for(lambda first_step=first_step: krill.count_logged_steps("run") > first_step + 2)
            cluster.preempt()
        assert waiting.wait(timeout=300) == 0, krill.messages()
    status = krill.status("run")
    assert (status["state"], status["starts"]) == ("finished", preemptions + 1)
    assert read_weights(krill.folder / "run") == uninterrupted_weights
    steps = [int(line.split('"step": ')[1].split(",")[0]) for line in _read_metrics(krill)]
    assert steps == sorted(steps), "each step was logged once"

    if mode == "with grace":
        job = status["slurm_job_id"]
        cluster.requeue(job)  # by an administrator, after the end
        wait_for(lambda: "already finished" in _read_job_log(krill))
        cluster.wait_idle()
        assert krill.status("run") == status
        assert cluster.final_states(job) == ["COMPLETED"]


def _read_metrics(krill: Krill) -> list[str]:
    return (krill.folder / "run" / "metrics.jsonl").read_text().splitlines()


def _read_job_log(krill: Krill) -> str:
    (log,) = (krill.folder / "outputs" / "jobs").glob("*/*_0_log.err")
    return log.read_text()


def test_a_run_resumes_after_its_time_limit(cluster: Cluster, krill: Krill) -> None:
    """Its signal is sent within the limit of a minute, and the steps of the first start alone need longer."""
    add_slow_model(krill, 1, seconds=0.5)
    arguments = (*SLOW_RUN, "steps=150", "eval_every=150")
    output = krill("train", "output=run", "hardware=slurm_gpu", "hardware.slurm.partition=short", *arguments)
    assert output == "run\n"
    status = krill.status("run")
    assert status["state"] == "finished"
    assert status["starts"] > 1
    (krill.folder / "slow").unlink()
    krill("train", "output=local", "device=cpu", *arguments)
    assert read_weights(krill.folder / "run") == read_weights(krill.folder / "local")


def test_requeues_are_limited_by_the_configuration(cluster: Cluster, krill: Krill) -> None:
    waiting = krill.start("train", "output=run", "hardware=slurm_gpu", "hardware.slurm.requeues=0", *LONG_RUN)
    wait_for(lambda: krill.count_logged_steps("run") > 2)
    job = krill.status("run")["slurm_job_id"]
    cluster.cancel(job, "USR2")
    assert waiting.wait(timeout=120) == 1
    assert "was requeued 0 times (hardware.slurm.requeues)" in krill.messages()
    assert krill.status("run")["state"] == "stopped"
    assert cluster.final_states(job) == ["FAILED"]
