"""What a run wrote of itself is held against its process, its lock and SLURM."""

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
def outside_of_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [key for key in os.environ if key.startswith("SLURM_")]:
        monkeypatch.delenv(name)


def make_run(folder: Path, state: str, **more: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    status = {"state": state, "signature": "a" * 64, "host": socket.gethostname(), "pid": os.getpid(), **more}
    (folder / "status.json").write_text(json.dumps(status))
    return folder


def fake_slurm_answers(
    folder: Path, patch: pytest.MonkeyPatch, squeue: str, sacct: str = "", code: int = 0
) -> Path:
    """SLURM that says this; what it is asked is noted."""
    for name, text, end in (("squeue", squeue, code), ("sacct", sacct, 0)):
        file = folder / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/sh\necho {name} >> {folder}/asked\ncat <<EOF\n{text}\nEOF\nexit {end}\n")
        file.chmod(0o755)
    patch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return folder / "asked"


@pytest.mark.parametrize("state", ["finished", "failed", "stopped"])
def test_what_has_ended_stands_as_it_says(tmp_path: Path, state: str) -> None:
    folder = make_run(tmp_path / "a", state, error="because")
    assert (get_run_state(folder).state, get_run_state(folder).detail) == (state, "because")
    assert get_run_state(tmp_path / "none").state == "not started"


def test_one_that_was_killed_is_not_running_for_ever(tmp_path: Path) -> None:
    text = (
        "import sys, time; from pathlib import Path; from krill.runs.claim import claim\n"
        "claimed = claim('a' * 64, Path(sys.argv[1])); print(claimed.folder, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", text, tmp_path], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        folder = make_run(Path(process.stdout.readline().strip()), "running", pid=process.pid)
        assert get_run_state(folder).state == "running"
        process.kill()
    assert get_run_state(folder).state == "killed"
    assert "is gone" in get_run_state(folder).detail


def test_a_number_that_another_process_has_now_is_no_sign_of_life(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", "running")  # this very process lives, but holds no lock there
    assert get_run_state(folder).state == "killed"


def test_what_cannot_be_seen_from_here_is_said(tmp_path: Path) -> None:
    stands = get_run_state(make_run(tmp_path / "a", "running", host="elsewhere"))
    assert stands.state == "running"
    assert "elsewhere" in stands.detail


def test_looking_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", "running")
    get_run_state(folder)
    assert [file.name for file in folder.iterdir()] == ["status.json"]


def test_a_lock_that_cannot_be_read_is_no_death(tmp_path: Path) -> None:
    """That of somebody else's run, in outputs that several people share."""
    folder = make_run(tmp_path / "a", "running")
    (folder / ".lock").symlink_to(".lock")  # refused to whomever, even to root
    stands = get_run_state(folder)
    assert (stands.state, "cannot be read" in stands.detail) == ("running", True)
    assert get_run_state(make_run(folder, "running", pid=2**22 + 1)).state == "killed"


def test_a_lock_that_is_held_is_seen_without_the_right_to_write(tmp_path: Path) -> None:
    with claim("a" * 64, tmp_path) as claimed:
        folder = make_run(claimed.folder, "running")
        (folder / ".lock").chmod(0o444)
        assert get_run_state(folder).state == "running"
        assert get_run_state(folder).detail == ""


JOBS = "7|RUNNING\n8_1|PENDING\n9|FAILED\n10|OUT_OF_MEMORY\n11|CANCELLED\n12|COMPLETED"


@pytest.mark.parametrize(
    ("state", "job", "real"),
    [
        ("running", "7", "running"), ("running", "8_1", "queued"), ("stopped", "8_1", "queued"),
        ("running", "9", "failed"), ("running", "10", "failed"), ("running", "11", "cancelled"),
        ("stopped", "11", "cancelled"), ("stopped", "9", "stopped"), ("running", "12", "failed"),
        ("running", "99", "killed"), ("finished", "11", "finished"),
    ],
)  # fmt: skip
def test_slurm_knows_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, job: str, real: str
) -> None:
    fake_slurm_answers(tmp_path, monkeypatch, JOBS)
    stands = get_run_state(make_run(tmp_path / "a", state, slurm_job_id=job))
    assert stands.state == real
    if real == "failed":
        assert stands.detail.startswith("SLURM: ")


def test_the_accounting_is_asked_for_what_has_left_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_slurm_answers(tmp_path, monkeypatch, "", "7|CANCELLED by 0\n8|RUNNING")
    assert slurm.query_job_states(["7", "8"]) == {"7": "CANCELLED", "8": "UNKNOWN"}, (
        "the accounting is late for 8"
    )


def test_slurm_that_does_not_answer_is_no_death(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_slurm_answers(tmp_path, monkeypatch, "", code=1)
    stands = get_run_state(make_run(tmp_path / "a", "running", slurm_job_id="7"))
    assert stands.state == "running"
    assert "cannot be asked" in stands.detail


def test_it_is_asked_once_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fake_slurm_answers(tmp_path, monkeypatch, JOBS)
    get_run_states([make_run(tmp_path / str(number), "running", slurm_job_id="7") for number in range(20)])
    assert asked.read_text().split() == ["squeue"]


def make_submission(tmp_path: Path, job: str | None = "8_1") -> Path:
    submission = tmp_path / "submission"
    submission.mkdir()
    if job:
        (submission / "jobs.json").write_text(json.dumps({"0": "8_0", "1": job}))
    return make_run(tmp_path / "a", "queued", submission=str(submission), submitted_as="1")


def test_one_that_waits_knows_its_job_by_its_submission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_slurm_answers(tmp_path, monkeypatch, JOBS)
    folder = make_submission(tmp_path)
    assert (get_run_state(folder).state, get_run_state(folder).job) == ("queued", "8_1")
    status = json.loads((folder / "status.json").read_text())
    assert find_log_file(folder, status) == tmp_path / "submission" / "8_1_0_log.err"
    (folder / "log.txt").touch()
    assert find_log_file(folder, status) == folder / "log.txt"


def test_one_whose_submission_was_killed_before_it_was_submitted(tmp_path: Path) -> None:
    assert get_run_state(make_submission(tmp_path, job=None)).state == "killed"


@pytest.mark.parametrize("jobs", ["[]", "{", '{"1": 8}'])
def test_a_submission_that_is_damaged_is_told_as_one_that_never_was(tmp_path: Path, jobs: str) -> None:
    folder = make_submission(tmp_path, job=None)
    (tmp_path / "submission" / "jobs.json").write_text(jobs)
    assert get_run_state(folder).state == "killed"


@pytest.mark.parametrize(
    ("number", "state"),
    [("7", "running"), ("8_1", "queued"), ("9", "failed"), ("11", "cancelled"), ("12", "finished")],
)
def test_of_a_call_without_a_run_folder_slurm_alone_knows(
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
    assert get_run_state(tmp_path).state == "not started", "its run stands for it"


def test_a_folder_that_waits_in_the_queue_is_given_to_nobody_but_its_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_slurm_answers(tmp_path, monkeypatch, JOBS)
    folder = make_submission(tmp_path)
    with claim("a" * 64, tmp_path) as claimed:
        assert claimed.folder != folder
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    with claim("a" * 64, tmp_path, place=folder) as claimed:
        assert (claimed.folder, claimed.state) == (folder, "new")
