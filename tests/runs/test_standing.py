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
from krill.runs.standing import log_of, standing, standings


@pytest.fixture(autouse=True)
def outside_of_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [key for key in os.environ if key.startswith("SLURM_")]:
        monkeypatch.delenv(name)


def run(folder: Path, state: str, **more: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    status = {"state": state, "signature": "a" * 64, "host": socket.gethostname(), "pid": os.getpid(), **more}
    (folder / "status.json").write_text(json.dumps(status))
    return folder


def told_by(folder: Path, patch: pytest.MonkeyPatch, squeue: str, sacct: str = "", code: int = 0) -> Path:
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
    folder = run(tmp_path / "a", state, error="because")
    assert (standing(folder).state, standing(folder).why) == (state, "because")
    assert standing(tmp_path / "none").state == "not started"


def test_one_that_was_killed_is_not_running_for_ever(tmp_path: Path) -> None:
    text = (
        "import sys, time; from pathlib import Path; from krill.runs.claim import claim\n"
        "claimed = claim('a' * 64, Path(sys.argv[1])); print(claimed.folder, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", text, tmp_path], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        folder = run(Path(process.stdout.readline().strip()), "running", pid=process.pid)
        assert standing(folder).state == "running"
        process.kill()
    assert standing(folder).state == "killed"
    assert "is gone" in standing(folder).why


def test_a_number_that_another_process_has_now_is_no_sign_of_life(tmp_path: Path) -> None:
    folder = run(tmp_path / "a", "running")  # this very process lives, but holds no lock there
    assert standing(folder).state == "killed"


def test_what_cannot_be_seen_from_here_is_said(tmp_path: Path) -> None:
    stands = standing(run(tmp_path / "a", "running", host="elsewhere"))
    assert stands.state == "running"
    assert "elsewhere" in stands.why


def test_looking_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = run(tmp_path / "a", "running")
    standing(folder)
    assert [file.name for file in folder.iterdir()] == ["status.json"]


def test_a_lock_that_cannot_be_read_is_no_death(tmp_path: Path) -> None:
    """That of somebody else's run, in outputs that several people share."""
    folder = run(tmp_path / "a", "running")
    (folder / ".lock").symlink_to(".lock")  # refused to whomever, even to root
    stands = standing(folder)
    assert (stands.state, "cannot be read" in stands.why) == ("running", True)
    assert standing(run(folder, "running", pid=2**22 + 1)).state == "killed"


def test_a_lock_that_is_held_is_seen_without_the_right_to_write(tmp_path: Path) -> None:
    with claim("a" * 64, tmp_path) as claimed:
        folder = run(claimed.folder, "running")
        (folder / ".lock").chmod(0o444)
        assert standing(folder).state == "running"
        assert standing(folder).why == ""


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
    told_by(tmp_path, monkeypatch, JOBS)
    stands = standing(run(tmp_path / "a", state, slurm_job_id=job))
    assert stands.state == real
    if real == "failed":
        assert stands.why.startswith("SLURM: ")


def test_the_accounting_is_asked_for_what_has_left_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told_by(tmp_path, monkeypatch, "", "7|CANCELLED by 0\n8|RUNNING")
    assert slurm.job_states(["7", "8"]) == {"7": "CANCELLED", "8": "UNKNOWN"}, "the accounting is late for 8"


def test_slurm_that_does_not_answer_is_no_death(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told_by(tmp_path, monkeypatch, "", code=1)
    stands = standing(run(tmp_path / "a", "running", slurm_job_id="7"))
    assert stands.state == "running"
    assert "cannot be asked" in stands.why


def test_it_is_asked_once_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = told_by(tmp_path, monkeypatch, JOBS)
    standings([run(tmp_path / str(number), "running", slurm_job_id="7") for number in range(20)])
    assert asked.read_text().split() == ["squeue"]


def submitted(tmp_path: Path, job: str | None = "8_1") -> Path:
    submission = tmp_path / "submission"
    submission.mkdir()
    if job:
        (submission / "jobs.json").write_text(json.dumps({"0": "8_0", "1": job}))
    return run(tmp_path / "a", "queued", submission=str(submission), submitted_as="1")


def test_one_that_waits_knows_its_job_by_its_submission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told_by(tmp_path, monkeypatch, JOBS)
    folder = submitted(tmp_path)
    assert (standing(folder).state, standing(folder).job) == ("queued", "8_1")
    status = json.loads((folder / "status.json").read_text())
    assert log_of(folder, status) == tmp_path / "submission" / "8_1_0_log.err"
    (folder / "log.txt").touch()
    assert log_of(folder, status) == folder / "log.txt"


def test_one_whose_submission_was_killed_before_it_was_submitted(tmp_path: Path) -> None:
    assert standing(submitted(tmp_path, job=None)).state == "killed"


@pytest.mark.parametrize("jobs", ["[]", "{", '{"1": 8}'])
def test_a_submission_that_is_damaged_is_told_as_one_that_never_was(tmp_path: Path, jobs: str) -> None:
    folder = submitted(tmp_path, job=None)
    (tmp_path / "submission" / "jobs.json").write_text(jobs)
    assert standing(folder).state == "killed"


@pytest.mark.parametrize(
    ("number", "state"),
    [("7", "running"), ("8_1", "queued"), ("9", "failed"), ("11", "cancelled"), ("12", "finished")],
)
def test_of_a_call_without_a_run_folder_slurm_alone_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: str, state: str
) -> None:
    told_by(tmp_path, monkeypatch, JOBS)
    call = {
        "config": {"name": "text"}, "folder": None,
        "hydra": {"job": {"config_name": "preprocess"}, "overrides": {"task": ["data=x"]}},
    }  # fmt: skip
    (tmp_path / "0.json").write_text(json.dumps(call))
    assert standing(tmp_path).state == "not started", "it was not submitted"
    (tmp_path / "jobs.json").write_text(json.dumps({"0": number}))
    assert (standing(tmp_path).state, standing(tmp_path).job) == (state, number)
    (tmp_path / "0.json").write_text(json.dumps(call | {"folder": "outputs/runs/a"}))
    assert standing(tmp_path).state == "not started", "its run stands for it"


def test_a_folder_that_waits_in_the_queue_is_given_to_nobody_but_its_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told_by(tmp_path, monkeypatch, JOBS)
    folder = submitted(tmp_path)
    with claim("a" * 64, tmp_path) as claimed:
        assert claimed.folder != folder
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    with claim("a" * 64, tmp_path, place=folder) as claimed:
        assert (claimed.folder, claimed.state) == (folder, "new")
