"""The actual state of a run is determined from its status, its process, its lock and SLURM."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from krill.runs import slurm
from krill.runs.claim import claim
from krill.runs.run_state import find_log_file, get_run_state, get_run_states


@pytest.fixture(autouse=True)
def without_slurm_env(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [key for key in os.environ if key.startswith("SLURM_")]:
        monkeypatch.delenv(name)


def make_run(folder: Path, state: str, **entries: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    status = {
        "state": state,
        "signature": "a" * 64,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        **entries,
    }
    (folder / "status.json").write_text(json.dumps(status))
    return folder


def fake_slurm_answers(
    folder: Path, patch: pytest.MonkeyPatch, squeue: str, sacct: str = "", code: int = 0
) -> Path:
    """Installs fake SLURM commands with these outputs; returns the file that lists their calls."""
    for name, output, exit_code in (("squeue", squeue, code), ("sacct", sacct, 0)):
        file = folder / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(
            f"#!/bin/sh\necho {name} >> {folder}/calls\ncat <<EOF\n{output}\nEOF\nexit {exit_code}\n"
        )
        file.chmod(0o755)
    patch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return folder / "calls"


@pytest.mark.parametrize("state", ["finished", "failed", "stopped"])
def test_the_recorded_state_of_an_ended_run_is_its_state(tmp_path: Path, state: str) -> None:
    folder = make_run(tmp_path / "a", state, error="because")
    assert (get_run_state(folder).state, get_run_state(folder).detail) == (state, "because")
    assert get_run_state(tmp_path / "none").state == "not started"


def test_a_killed_run_is_not_reported_as_running(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from krill.runs.claim import claim\n"
        "claimed = claim('a' * 64, Path(sys.argv[1])); print(claimed.folder, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        folder = make_run(Path(process.stdout.readline().strip()), "running", pid=process.pid)
        assert get_run_state(folder).state == "running"
        process.kill()
    assert get_run_state(folder).state == "killed"
    assert "is gone" in get_run_state(folder).detail


def test_a_reused_pid_does_not_mean_that_the_run_is_alive(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", "running")  # this process is alive but does not hold the lock
    assert get_run_state(folder).state == "killed"


def test_the_detail_says_that_the_lock_of_another_machine_is_not_visible(tmp_path: Path) -> None:
    run_state = get_run_state(make_run(tmp_path / "a", "running", host="elsewhere"))
    assert run_state.state == "running"
    assert "elsewhere" in run_state.detail


def test_determining_the_state_creates_no_files(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", "running")
    get_run_state(folder)
    assert [file.name for file in folder.iterdir()] == ["status.json"]


def test_a_run_with_an_unreadable_lock_is_not_reported_as_killed(tmp_path: Path) -> None:
    """Such as the lock of another user in a shared outputs folder."""
    folder = make_run(tmp_path / "a", "running")
    (folder / ".lock").symlink_to(".lock")  # cannot be opened, even by root
    run_state = get_run_state(folder)
    assert (run_state.state, "cannot be read" in run_state.detail) == ("running", True)
    assert get_run_state(make_run(folder, "running", pid=2**22 + 1)).state == "killed"


def test_a_held_lock_is_detected_without_write_permission(tmp_path: Path) -> None:
    with claim("a" * 64, tmp_path) as claimed:
        folder = make_run(claimed.folder, "running")
        (folder / ".lock").chmod(0o444)
        assert get_run_state(folder).state == "running"
        assert get_run_state(folder).detail == ""


JOBS = "7|RUNNING\n8_1|PENDING\n9|FAILED\n10|OUT_OF_MEMORY\n11|CANCELLED\n12|COMPLETED"


@pytest.mark.parametrize(
    ("state", "job", "actual"),
    [
        ("running", "7", "running"), ("running", "8_1", "queued"), ("stopped", "8_1", "queued"),
        ("running", "9", "failed"), ("running", "10", "failed"), ("running", "11", "cancelled"),
        ("stopped", "11", "cancelled"), ("stopped", "9", "stopped"), ("running", "12", "failed"),
        ("running", "99", "killed"), ("finished", "11", "finished"),
    ],
)  # fmt: skip
def test_the_state_in_slurm_takes_precedence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, job: str, actual: str
) -> None:
    fake_slurm_answers(tmp_path, monkeypatch, JOBS)
    run_state = get_run_state(make_run(tmp_path / "a", state, slurm_job_id=job))
    assert run_state.state == actual
    if actual == "failed":
        assert run_state.detail.startswith("SLURM: ")


def test_the_accounting_is_queried_for_jobs_that_have_left_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_slurm_answers(tmp_path, monkeypatch, "", "7|CANCELLED by 0\n8|RUNNING")
    assert slurm.query_job_states(["7", "8"]) == {"7": "CANCELLED", "8": "UNKNOWN"}, (
        "the accounting lags for 8"
    )


def test_a_run_is_not_reported_as_killed_if_slurm_does_not_respond(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_slurm_answers(tmp_path, monkeypatch, "", code=1)
    run_state = get_run_state(make_run(tmp_path / "a", "running", slurm_job_id="7"))
    assert run_state.state == "running"
    assert "cannot be queried" in run_state.detail


def test_slurm_is_queried_once_for_all_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_slurm_answers(tmp_path, monkeypatch, JOBS)
    get_run_states([make_run(tmp_path / str(number), "running", slurm_job_id="7") for number in range(20)])
    assert calls.read_text().split() == ["squeue"]


def make_submission(tmp_path: Path, job: str | None = "8_1") -> Path:
    submission = tmp_path / "submission"
    submission.mkdir()
    if job:
        (submission / "jobs.json").write_text(json.dumps({"0": "8_0", "1": job}))
    return make_run(tmp_path / "a", "queued", submission=str(submission), submitted_as="1")


def test_a_queued_run_finds_its_job_through_its_submission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_slurm_answers(tmp_path, monkeypatch, JOBS)
    folder = make_submission(tmp_path)
    assert (get_run_state(folder).state, get_run_state(folder).job) == ("queued", "8_1")
    status = json.loads((folder / "status.json").read_text())
    assert find_log_file(folder, status) == tmp_path / "submission" / "8_1_0_log.err"
    (folder / "log.txt").touch()
    assert find_log_file(folder, status) == folder / "log.txt"


def test_a_run_whose_submission_was_killed_is_killed(tmp_path: Path) -> None:
    assert get_run_state(make_submission(tmp_path, job=None)).state == "killed"


@pytest.mark.parametrize("jobs", ["[]", "{", '{"1": 8}'])
def test_a_corrupt_submission_counts_as_missing(tmp_path: Path, jobs: str) -> None:
    folder = make_submission(tmp_path, job=None)
    (tmp_path / "submission" / "jobs.json").write_text(jobs)
    assert get_run_state(folder).state == "killed"


@pytest.mark.parametrize(
    ("number", "state"),
    [("7", "running"), ("8_1", "queued"), ("9", "failed"), ("11", "cancelled"), ("12", "finished")],
)
def test_the_state_of_a_submission_without_a_run_folder_comes_from_slurm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: str, state: str
) -> None:
    fake_slurm_answers(tmp_path, monkeypatch, JOBS)
    call = {
        "config": {"name": "text"}, "folder": None,
        "hydra": {"job": {"config_name": "preprocess"}, "overrides": {"task": ["data=x"]}},
    }  # fmt: skip
    (tmp_path / "0.json").write_text(json.dumps(call))
    assert get_run_state(tmp_path).state == "not started", "it was not submitted"
    (tmp_path / "jobs.json").write_text(json.dumps({"0": number}))
    assert (get_run_state(tmp_path).state, get_run_state(tmp_path).job) == (state, number)
    (tmp_path / "0.json").write_text(json.dumps(call | {"folder": "outputs/runs/a"}))
    assert get_run_state(tmp_path).state == "not started", "its run has its own state"


def test_the_folder_of_a_queued_run_can_be_claimed_only_by_its_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_slurm_answers(tmp_path, monkeypatch, JOBS)
    folder = make_submission(tmp_path)
    with claim("a" * 64, tmp_path) as claimed:
        assert claimed.folder != folder
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    with claim("a" * 64, tmp_path, output=folder) as claimed:
        assert (claimed.folder, claimed.state) == (folder, "new")
