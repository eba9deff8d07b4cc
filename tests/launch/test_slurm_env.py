"""A process that SLURM started: its rank in torchrun's variables, and when its job is requeued."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import fake_slurm
import pytest

from krill.errors import UsageError
from krill.launch import slurm_env

STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1",
        "SLURM_STEP_NODELIST": "n[1-2]"}  # fmt: skip


@pytest.fixture(autouse=True)
def clean_slurm_env(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*(key for key in os.environ if key.startswith("SLURM_")), "CUDA_VISIBLE_DEVICES"]:
        monkeypatch.delenv(name, raising=False)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def exported_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **more: str) -> dict[str, str]:
    monkeypatch.setenv("PATH", str(tmp_path))  # without scontrol, as in many containers
    for key, value in (STEP | more).items():
        monkeypatch.setenv(key, value)
    slurm_env.export_torchrun_env()
    return {
        key: os.environ[key]
        for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
    }


def test_a_task_of_srun_gets_torchruns_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert exported_env(tmp_path, monkeypatch) == {
        "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "n1",
    }  # fmt: skip
    assert 1024 <= int(os.environ["MASTER_PORT"]) < 32768, "outgoing connections may use the ports above"
    port = os.environ["MASTER_PORT"]
    for name in ("RANK", "MASTER_PORT"):
        monkeypatch.delenv(name)
    exported_env(tmp_path, monkeypatch, SLURM_STEP_ID="1")
    assert os.environ["MASTER_PORT"] != port, "two steps of a job run at the same time"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("n1", ["n1"]),
        ("login,n[1-3,5]", ["login", "n1", "n2", "n3", "n5"]),
        ("gpu-[008-010],gpu-[2]", ["gpu-008", "gpu-009", "gpu-010", "gpu-2"]),
        (
            "rack[1-2]node[09-10].site",
            ["rack1node09.site", "rack1node10.site", "rack2node09.site", "rack2node10.site"],
        ),
        ("a,b-1,c[7]", ["a", "b-1", "c7"]),
    ],
)
def test_node_lists_are_expanded_without_scontrol(text: str, expected: list[str]) -> None:
    assert slurm_env.expand_node_list(text) == expected


def test_an_unknown_node_list_is_rejected() -> None:
    with pytest.raises(UsageError, match=r"SLURM_STEP_NODELIST=n\[1-x\]: n\[1-x\] is not a list of nodes"):
        slurm_env.expand_node_list("n[1-x]")


def test_local_rank_is_0_if_each_task_sees_only_its_own_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert exported_env(tmp_path, monkeypatch, CUDA_VISIBLE_DEVICES="1")["LOCAL_RANK"] == "0"


def test_a_batch_script_is_not_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"}.items():
        monkeypatch.setenv(key, value)
    slurm_env.export_torchrun_env()
    assert "RANK" not in os.environ


def requeue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str, received: signal.Signals, **more: str
) -> tuple[str | None, str]:
    """Returns the message of requeue_job and the SLURM commands that it ran; `job`: from scontrol show job."""
    calls = fake_slurm.install(tmp_path, monkeypatch, scontrol=job)
    for key, value in ({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0"} | more).items():
        monkeypatch.setenv(key, value)
    message = slurm_env.requeue_job(received, max_requeues=3)
    return message, calls.read_text() if calls.exists() else ""


RUNNING = "JobId=7 JobState=RUNNING Reason=None Restarts=0 PreemptTime=None"


def test_a_job_at_its_time_limit_is_requeued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message, calls = requeue(tmp_path, monkeypatch, RUNNING, signal.SIGUSR2)
    assert message == "job 7 was requeued"
    assert "scontrol requeue 7" in calls


@pytest.mark.parametrize(
    ("job", "received", "more"),
    [
        pytest.param("JobState=CANCELLED Restarts=0", signal.SIGTERM, {}, id="cancelled"),
        pytest.param("JobState=PENDING Restarts=1", signal.SIGUSR2, {}, id="requeued by SLURM"),
        pytest.param("JobState=RUNNING Restarts=1", signal.SIGUSR2, {}, id="already started elsewhere"),
        pytest.param(RUNNING, signal.SIGTERM, {}, id="SIGTERM without preemption"),
        pytest.param(RUNNING, signal.SIGUSR2, {"SLURM_PROCID": "1"}, id="another rank requeues"),
    ],
)
def test_otherwise_a_job_is_not_requeued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str, received: signal.Signals, more: dict[str, str]
) -> None:
    message, calls = requeue(tmp_path, monkeypatch, job, received, **more)
    assert message is None
    assert "requeue" not in calls


def test_a_job_preempted_with_notice_is_requeued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = RUNNING.replace("PreemptTime=None", "PreemptTime=2030-01-01T00:00:00")
    assert requeue(tmp_path, monkeypatch, job, signal.SIGTERM)[0] == "job 7 was requeued"


def test_requeues_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = RUNNING.replace("Restarts=0", "Restarts=3")
    message, calls = requeue(tmp_path, monkeypatch, job, signal.SIGUSR2, SLURM_RESTART_COUNT="3")
    assert message is not None
    assert "was requeued 3 times" in message
    assert "requeue" not in calls


def test_an_unreachable_slurm_does_not_hide_that_the_run_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_slurm.install(tmp_path, monkeypatch)
    (tmp_path / "bin" / "scontrol").write_text(
        "#!/bin/sh\necho 'Unable to contact slurm controller' >&2\nexit 1\n"
    )
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_PROCID", "0")
    message = slurm_env.requeue_job(signal.SIGUSR2, max_requeues=3)
    assert message is not None
    assert (
        "not requeued (scontrol: Unable to contact slurm controller); run the same command to resume"
        in message
    )
