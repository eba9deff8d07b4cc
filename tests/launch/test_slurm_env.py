"""A process that SLURM started: which rank it is, and when its job goes back into the queue."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import fake_slurm
import pytest

from krill.launch import slurm_env

STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1",
        "SLURM_STEP_NODELIST": "n[1-2]"}  # fmt: skip


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*(key for key in os.environ if key.startswith("SLURM_")), "CUDA_VISIBLE_DEVICES"]:
        monkeypatch.delenv(name, raising=False)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def exported_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **more: str) -> dict[str, str]:
    fake_slurm.install(tmp_path, monkeypatch, scontrol="n1\nn2\n")
    for key, value in (STEP | more).items():
        monkeypatch.setenv(key, value)
    slurm_env.export_torchrun_env()
    return {
        key: os.environ[key]
        for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
    }


def test_a_task_is_a_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert exported_env(tmp_path, monkeypatch) == {
        "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "n1",
    }  # fmt: skip
    assert 20000 <= int(os.environ["MASTER_PORT"]) <= 60000


def test_where_each_task_sees_its_gpu_alone_it_is_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert exported_env(tmp_path, monkeypatch, CUDA_VISIBLE_DEVICES="1")["LOCAL_RANK"] == "0"


def test_a_batch_script_is_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"}.items():
        monkeypatch.setenv(key, value)
    slurm_env.export_torchrun_env()
    assert "RANK" not in os.environ


def requeue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, received: signal.Signals, **more: str
) -> tuple[str | None, str]:
    asked = fake_slurm.install(tmp_path, monkeypatch, scontrol=told)
    for key, value in ({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0"} | more).items():
        monkeypatch.setenv(key, value)
    done = slurm_env.requeue_job(received, requeues=3)
    return done, asked.read_text() if asked.exists() else ""


RUNNING = "JobId=7 JobState=RUNNING Reason=None Restarts=0 PreemptTime=None"


def test_out_of_time_it_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done, asked = requeue(tmp_path, monkeypatch, RUNNING, signal.SIGUSR2)
    assert done == "job 7 is in the queue again"
    assert "scontrol requeue 7" in asked


@pytest.mark.parametrize(
    ("told", "received", "more"),
    [
        pytest.param("JobState=CANCELLED Restarts=0", signal.SIGTERM, {}, id="cancelled"),
        pytest.param("JobState=PENDING Restarts=1", signal.SIGUSR2, {}, id="SLURM has done so"),
        pytest.param("JobState=RUNNING Restarts=1", signal.SIGUSR2, {}, id="started elsewhere already"),
        pytest.param(RUNNING, signal.SIGTERM, {}, id="somebody sent SIGTERM"),
        pytest.param(RUNNING, signal.SIGUSR2, {"SLURM_PROCID": "1"}, id="another rank does"),
    ],
)
def test_otherwise_it_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, received: signal.Signals, more: dict[str, str]
) -> None:
    done, asked = requeue(tmp_path, monkeypatch, told, received, **more)
    assert done is None
    assert "requeue" not in asked


def test_preempted_with_time_to_save_it_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = RUNNING.replace("PreemptTime=None", "PreemptTime=2030-01-01T00:00:00")
    assert requeue(tmp_path, monkeypatch, told, signal.SIGTERM)[0] == "job 7 is in the queue again"


def test_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = RUNNING.replace("Restarts=0", "Restarts=3")
    done, asked = requeue(tmp_path, monkeypatch, told, signal.SIGUSR2, SLURM_RESTART_COUNT="3")
    assert done is not None
    assert "started again 3 times" in done
    assert "requeue" not in asked
