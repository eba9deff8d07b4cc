"""A run gets the folder of its unfinished run, or a new one; never that of an active, finished or other run."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from krill import atomic
from krill.errors import UsageError
from krill.runs import claim as claiming
from krill.runs.claim import Claim, claim
from krill.runs.record import read_status

SIGNATURE, OTHER_SIGNATURE = "a" * 64, "b" * 64


def make_past_run(folder: Path, state: str = "stopped", signature: str = SIGNATURE, **entries: Any) -> Path:
    """Creates the folder of an earlier run whose writer is gone."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "status.json").write_text(json.dumps({"state": state, "signature": signature, **entries}))
    return folder


def release_claim(claimed: Claim) -> tuple[Path, str]:
    """Releases a claim; returns its folder and state."""
    with claimed:
        return claimed.folder, claimed.state


def test_a_writer_that_has_not_recorded_itself_is_not_made_up(tmp_path: Path) -> None:
    with claim(SIGNATURE, tmp_path / "runs", tmp_path / "out"):
        with pytest.raises(UsageError, match="is being written by another process; wait for it") as error:
            claim(SIGNATURE, tmp_path / "runs", tmp_path / "out")
        assert "?" not in str(error.value)


def test_a_new_folder_is_named_by_time_and_signature(tmp_path: Path) -> None:
    folder, state = release_claim(claim(SIGNATURE, tmp_path / "runs"))
    assert state == "new"
    assert folder.parent == tmp_path / "runs"
    time, _, suffix = folder.name.rpartition("-")
    assert suffix == "aaaaaaaa"
    assert abs((datetime.now() - datetime.strptime(time, "%Y-%m-%d_%H-%M-%S")).total_seconds()) < 60


def test_runs_of_the_same_second_get_different_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Noon(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Noon:
            return cls(2030, 1, 2, 12)

    monkeypatch.setattr(atomic, "datetime", Noon)
    claims = [claim(SIGNATURE, tmp_path) for _ in range(3)]
    names = [claimed.folder.name for claimed in claims]
    assert names == [
        "2030-01-02_12-00-00-aaaaaaaa",
        "2030-01-02_12-00-00-aaaaaaaa-2",
        "2030-01-02_12-00-00-aaaaaaaa-3",
    ]
    for claimed in claims:
        claimed.__exit__()


@pytest.mark.parametrize("state", ["running", "stopped", "failed"])
def test_an_unfinished_run_whose_writer_is_gone_is_resumed(tmp_path: Path, state: str) -> None:
    folder = make_past_run(tmp_path / "1", state)
    assert release_claim(claim(SIGNATURE, tmp_path)) == (folder, "resumed")


def test_the_newest_unfinished_run_is_resumed(tmp_path: Path) -> None:
    for name, state in (("1", "stopped"), ("2", "failed"), ("3", "finished")):
        make_past_run(tmp_path / name, state)
    assert release_claim(claim(SIGNATURE, tmp_path))[0] == tmp_path / "2"


def test_finished_runs_other_runs_and_other_folders_are_not_claimed(tmp_path: Path) -> None:
    make_past_run(tmp_path / "1", "finished")
    make_past_run(tmp_path / "2", "stopped", OTHER_SIGNATURE)
    (tmp_path / "3").mkdir()
    (tmp_path / "4").write_text("a file")
    assert release_claim(claim(SIGNATURE, tmp_path))[1] == "new"


def test_an_active_run_is_not_claimed(tmp_path: Path) -> None:
    folder = make_past_run(tmp_path / "1", "running")
    with claim(SIGNATURE, tmp_path) as active:
        assert active.folder == folder
        assert release_claim(claim(SIGNATURE, tmp_path))[1] == "new"
    assert release_claim(claim(SIGNATURE, tmp_path)) == (folder, "resumed")


def _claim_and_die(runs: Path) -> None:
    import os
    import signal

    claim(SIGNATURE, runs)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_folder_whose_run_finishes_meanwhile_is_not_claimed_as_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process has the same output= and is faster."""
    original = claiming._lock_or_raise

    def finish_and_lock(folder: Path) -> Any:
        make_past_run(folder, "finished")
        return original(folder)

    monkeypatch.setattr(claiming, "_lock_or_raise", finish_and_lock)
    claimed = claim(SIGNATURE, tmp_path / "runs", tmp_path / "out")
    assert (claimed.state, claimed.lock) == ("finished", None)


def test_a_command_that_reads_the_state_of_a_run_does_not_keep_it_from_resuming(tmp_path: Path) -> None:
    run = make_past_run(tmp_path / "2030-01-01_00-00-00-aaaaaaaa")
    with open(run / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        reader = threading.Timer(claiming.LOCK_SECONDS / 4, fcntl.flock, (file, fcntl.LOCK_UN))
        reader.start()
        assert release_claim(claim(SIGNATURE, tmp_path)) == (run, "resumed")
        reader.join()


def test_the_lock_of_a_killed_writer_is_released(tmp_path: Path) -> None:
    folder = make_past_run(tmp_path / "1", "running")
    process = multiprocessing.get_context("fork").Process(target=_claim_and_die, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -9
    assert release_claim(claim(SIGNATURE, tmp_path)) == (folder, "resumed")


def test_a_run_that_finishes_during_the_check_is_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_past_run(tmp_path / "1", "running")
    original = claiming._try_lock

    def finish_and_lock(candidate: Path) -> Any:
        if candidate == folder:
            make_past_run(folder, "finished")
        return original(candidate)

    monkeypatch.setattr(claiming, "_try_lock", finish_and_lock)
    assert release_claim(claim(SIGNATURE, tmp_path))[1] == "new"
    make_past_run(folder, "running")
    claimed = claim(SIGNATURE, tmp_path, resume=str(folder))
    assert (claimed.state, claimed.lock) == ("finished", None)


# --- resume= -----------------------------------------------------------------------------------------------


def test_resume_false_creates_a_new_folder(tmp_path: Path) -> None:
    make_past_run(tmp_path / "1")
    assert release_claim(claim(SIGNATURE, tmp_path, resume=False))[1] == "new"


@pytest.mark.parametrize("resume", ["local", True])
def test_resume_local_and_true_require_an_unfinished_run(tmp_path: Path, resume: Any) -> None:
    runs = tmp_path / "runs"
    with pytest.raises(UsageError, match="no unfinished run"):
        claim(SIGNATURE, runs, resume=resume)
    assert not runs.exists()
    make_past_run(runs / "1")
    assert release_claim(claim(SIGNATURE, runs, resume=resume))[1] == "resumed"


def test_resume_remote_resumes_only_a_run_that_came_from_the_hub(tmp_path: Path) -> None:
    make_past_run(tmp_path / "1", remote={"id": "me/mine", "step": 3})
    make_past_run(tmp_path / "2")
    assert release_claim(claim(SIGNATURE, tmp_path, resume="remote")) == (tmp_path / "1", "resumed")
    make_past_run(tmp_path / "1", "finished", remote={"id": "me/mine", "step": 3})
    assert release_claim(claim(SIGNATURE, tmp_path, resume="remote"))[1] == "new"


def test_resume_by_folder(tmp_path: Path) -> None:
    folder = make_past_run(tmp_path / "elsewhere")
    assert release_claim(claim(SIGNATURE, tmp_path / "runs", resume=str(folder))) == (folder, "resumed")
    make_past_run(folder, "finished")
    assert release_claim(claim(SIGNATURE, tmp_path / "runs", resume=str(folder)))[1] == "finished"
    make_past_run(folder, signature=OTHER_SIGNATURE)
    with pytest.raises(UsageError, match=r"another configuration.*from="):
        claim(SIGNATURE, tmp_path / "runs", resume=str(folder))
    with pytest.raises(UsageError, match=r"status\.json is missing"):
        claim(SIGNATURE, tmp_path / "runs", resume=str(tmp_path / "none"))


def test_a_finished_run_of_another_configuration_is_not_skipped_as_this_one(tmp_path: Path) -> None:
    folder = make_past_run(tmp_path / "1", "finished", signature=OTHER_SIGNATURE)
    for allow_changed in (False, True):
        with pytest.raises(UsageError, match=r"has finished, with another configuration; set continue=.*/1 "):
            claim(SIGNATURE, tmp_path, resume=str(folder), allow_changed=allow_changed)


def test_resume_of_an_active_run_names_its_writer(tmp_path: Path) -> None:
    folder = make_past_run(tmp_path / "1", "running", pid=123, host="node7")
    with claim(SIGNATURE, tmp_path), pytest.raises(UsageError, match="by process 123 on node7"):
        claim(SIGNATURE, tmp_path, resume=str(folder))


# --- output=, the point of a sweep -------------------------------------------------------------------------


def test_output_is_created_or_used_if_it_is_empty(tmp_path: Path) -> None:
    output = tmp_path / "a" / "b"
    assert release_claim(claim(SIGNATURE, tmp_path, output)) == (output, "new")
    # killed before it wrote anything
    assert release_claim(claim(SIGNATURE, tmp_path, output)) == (output, "new")


def test_output_with_this_run_is_resumed_or_finished(tmp_path: Path) -> None:
    output = make_past_run(tmp_path / "a", "failed")
    assert release_claim(claim(SIGNATURE, tmp_path, output)) == (output, "resumed")
    with pytest.raises(UsageError, match="resume=false"):
        claim(SIGNATURE, tmp_path, output, resume=False)
    make_past_run(output, "finished")
    assert release_claim(claim(SIGNATURE, tmp_path, output)) == (output, "finished")


@pytest.mark.parametrize("status", ['{"state": "x"}', "[1]", "not JSON"])
def test_output_with_other_files_is_rejected(tmp_path: Path, status: str) -> None:
    (tmp_path / "status.json").write_text(status)
    with pytest.raises(UsageError, match="does not hold a run of krill"):
        claim(SIGNATURE, tmp_path, tmp_path)
    assert read_status(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


@pytest.mark.parametrize(
    "content", ["", "{", '{"state": "running"}', '{"state": "sunning", "signature": "a"}']
)
def test_a_run_with_a_damaged_status_is_not_started_over(tmp_path: Path, content: str) -> None:
    older, _ = release_claim(claim(SIGNATURE, tmp_path))
    make_past_run(older)
    other, _ = release_claim(claim(OTHER_SIGNATURE, tmp_path))
    for folder in (older, other):
        (folder / "status.json").write_text(content)
    error = r"status\.json is damaged .* Add resume=\S+ resume_changed=true"
    for resume in ("auto", "local", str(older)):
        with pytest.raises(UsageError, match=error):
            claim(SIGNATURE, tmp_path, resume=resume)
    with pytest.raises(UsageError, match=error):
        claim(SIGNATURE, tmp_path, output=older)
    assert sorted(tmp_path.iterdir()) == [older, other]
    resumed = release_claim(claim(SIGNATURE, tmp_path, resume=str(older), allow_changed=True))
    assert resumed == (older, "resumed")
    assert release_claim(claim(SIGNATURE, tmp_path, resume=False))[1] == "new"


def test_a_damaged_run_of_another_configuration_does_not_matter(tmp_path: Path) -> None:
    other, _ = release_claim(claim(OTHER_SIGNATURE, tmp_path))
    (other / "status.json").write_text("{")
    assert release_claim(claim(SIGNATURE, tmp_path))[1] == "new"


def test_output_that_is_a_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(UsageError, match="use another folder"):
        claim(SIGNATURE, tmp_path, tmp_path / "a")


def test_output_of_an_active_or_other_run_is_rejected(tmp_path: Path) -> None:
    output = make_past_run(tmp_path / "a", "running")
    with claim(SIGNATURE, tmp_path, output), pytest.raises(UsageError, match="is being written"):
        claim(SIGNATURE, tmp_path, output)
    make_past_run(output, signature=OTHER_SIGNATURE)
    with pytest.raises(UsageError, match="another configuration"):
        claim(SIGNATURE, tmp_path, output)


@pytest.mark.parametrize("log", ["", "2026-01-01 00:00:00,123 DEBUG failed\nTraceback\n"])
def test_output_left_by_a_run_before_its_status_is_used(tmp_path: Path, log: str) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / ".lock").touch()
    (folder / "log.txt").write_text(log)
    with claim("a", tmp_path / "runs", folder) as claimed:
        assert claimed.state == "new"


def test_output_with_another_log_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("my notes\n")
    with pytest.raises(UsageError, match="is not empty"):
        claim("a", tmp_path / "runs", tmp_path)
