"""Preempted, out of time, started again by an administrator: the run goes on by itself, to the same bytes."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
from conftest import SMALL, Cluster, Krill, wait_for

LONG = (*SMALL[:-2], "steps=400", "eval_every=400", "save_every=400", "log_every=5")


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(made: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of the run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "outputs").symlink_to(made)
    Krill(folder)("train", "output=run", "device=cpu", *LONG)
    return weights(folder / "run")


@pytest.mark.parametrize("mode", ["at once", "with grace", "without the user signal"])
def test_preempted_twice_it_ends_with_the_same_weights(
    cluster: Cluster, krill: Krill, undisturbed: bytes, mode: str
) -> None:
    partition = "spot" if mode == "with grace" else "gpu"
    usual = mode != "without the user signal"
    with nullcontext() if usual else cluster.user_signal(False):
        waiting = krill.start(
            "train", "output=run", "hardware=slurm_gpu", f"hardware.slurm.partition={partition}", *LONG
        )
        for time in (1, 2):
            begun = wait_for(
                lambda time=time: krill.status("run").get("starts") == time and krill.lines("run") + 1
            )
            wait_for(lambda begun=begun: krill.lines("run") > begun + 5)
            cluster.preempt()
        assert waiting.wait(timeout=300) == 0, krill.messages()
    status = krill.status("run")
    assert (status["state"], status["starts"]) == ("finished", 3)
    assert weights(krill.folder / "run") == undisturbed
    steps = [int(line.split('"step": ')[1].split(",")[0]) for line in _metrics(krill)]
    assert steps == sorted(steps), "each step was logged once"

    job = status["slurm_job_id"]
    cluster.requeue(job)  # by an administrator, after the end
    wait_for(lambda: "finished already" in _log_of_job(krill))
    cluster.wait_idle()
    assert krill.status("run") == status
    assert cluster.states(job) == ["COMPLETED"]


def _metrics(krill: Krill) -> list[str]:
    return (krill.folder / "run" / "metrics.jsonl").read_text().splitlines()


def _log_of_job(krill: Krill) -> str:
    (log,) = (krill.folder / "outputs" / "jobs").glob("*/*_0_log.err")
    return log.read_text()


SLOW_MODEL = """
import time
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

class Model(LlamaForCausalLM):
    def forward(self, input_ids=None, position_ids=None, **rest):
        if self.training and Path("slow").exists():
            time.sleep(0.16)
        return super().forward(input_ids=input_ids, position_ids=position_ids, **rest)

def build(vocab_size, **tokens):
    return Model(LlamaConfig(
        vocab_size=vocab_size, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        **tokens,
    ))
"""


def test_a_time_limit_is_only_a_pause(cluster: Cluster, krill: Krill) -> None:
    """A minute, of a run that needs more."""
    krill.own_model(SLOW_MODEL)
    words = ("model=own", *LONG[1:], "optimizer=adamw")
    (krill.folder / "slow").touch()
    output = krill("train", "output=run", "hardware=slurm_gpu", "hardware.slurm.partition=short", *words)
    assert output == "run\n"
    status = krill.status("run")
    assert status["state"] == "finished"
    assert status["starts"] > 1
    (krill.folder / "slow").unlink()
    krill("train", "output=plain", "device=cpu", *words)
    assert weights(krill.folder / "run") == weights(krill.folder / "plain")


def test_it_is_not_started_again_for_ever(cluster: Cluster, krill: Krill) -> None:
    waiting = krill.start("train", "output=run", "hardware=slurm_gpu", "hardware.slurm.requeues=0", *LONG)
    wait_for(lambda: krill.lines("run") > 2)
    job = krill.status("run")["slurm_job_id"]
    cluster.cancel(job, "USR2")
    assert waiting.wait(timeout=120) == 1
    assert "has been started again 0 times (hardware.slurm.requeues)" in krill.messages()
    assert krill.status("run")["state"] == "stopped"
    assert cluster.states(job) == ["FAILED"]
