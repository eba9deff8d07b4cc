"""Which folder a run gets: its own unfinished one, or a new one; never a living, finished or foreign one."""

from __future__ import annotations

import json
import multiprocessing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from krill import atomic
from krill.errors import UsageError
from krill.runs import claim as claiming
from krill.runs.claim import Claim, claim
from krill.runs.record import read_status

MINE, OTHER = "a" * 64, "b" * 64


def make_past_run(folder: Path, state: str = "stopped", signature: str = MINE, **more: Any) -> Path:
    """A run that was here before, its writer gone."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "status.json").write_text(json.dumps({"state": state, "signature": signature, **more}))
    return folder


def release_claim(claimed: Claim) -> tuple[Path, str]:
    """What was claimed; given up again."""
    with claimed:
        return claimed.folder, claimed.state


def test_a_new_folder_is_named_for_time_and_signature(tmp_path: Path) -> None:
    folder, state = release_claim(claim(MINE, tmp_path / "runs"))
    assert state == "new"
    assert folder.parent == tmp_path / "runs"
    time, _, digits = folder.name.rpartition("-")
    assert digits == "aaaaaaaa"
    assert abs((datetime.now() - datetime.strptime(time, "%Y-%m-%d_%H-%M-%S")).total_seconds()) < 60


def test_two_of_the_same_second_get_two_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Noon(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Noon:
            return cls(2030, 1, 2, 12)

    monkeypatch.setattr(atomic, "datetime", Noon)
    names = []
    claims = [claim(MINE, tmp_path) for _ in range(3)]
    names = [claimed.folder.name for claimed in claims]
    assert names == [
        "2030-01-02_12-00-00-aaaaaaaa",
        "2030-01-02_12-00-00-aaaaaaaa-2",
        "2030-01-02_12-00-00-aaaaaaaa-3",
    ]
    for claimed in claims:
        claimed.__exit__()


@pytest.mark.parametrize("state", ["running", "stopped", "failed"])
def test_an_unfinished_run_whose_writer_is_gone_goes_on(tmp_path: Path, state: str) -> None:
    folder = make_past_run(tmp_path / "1", state)
    assert release_claim(claim(MINE, tmp_path)) == (folder, "continued")


def test_the_newest_unfinished_one_goes_on(tmp_path: Path) -> None:
    for name, state in (("1", "stopped"), ("2", "failed"), ("3", "finished")):
        make_past_run(tmp_path / name, state)
    assert release_claim(claim(MINE, tmp_path))[0] == tmp_path / "2"


def test_finished_and_foreign_runs_and_other_folders_are_left_alone(tmp_path: Path) -> None:
    make_past_run(tmp_path / "1", "finished")
    make_past_run(tmp_path / "2", "stopped", OTHER)
    (tmp_path / "3").mkdir()
    (tmp_path / "4").write_text("a file")
    assert release_claim(claim(MINE, tmp_path))[1] == "new"


def test_a_living_run_is_left_alone_while_it_lives(tmp_path: Path) -> None:
    folder = make_past_run(tmp_path / "1", "running")
    with claim(MINE, tmp_path) as living:
        assert living.folder == folder
        assert release_claim(claim(MINE, tmp_path))[1] == "new"
    assert release_claim(claim(MINE, tmp_path)) == (folder, "continued")


def _die_with_the_lock(runs: Path) -> None:
    import os
    import signal

    claim(MINE, runs)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_writer_holds_nothing(tmp_path: Path) -> None:
    folder = make_past_run(tmp_path / "1", "running")
    process = multiprocessing.get_context("fork").Process(target=_die_with_the_lock, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -9
    assert release_claim(claim(MINE, tmp_path)) == (folder, "continued")


def test_a_run_that_finishes_while_it_is_looked_at_is_not_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_past_run(tmp_path / "1", "running")
    lock = claiming._try_lock

    def finished_meanwhile(place: Path) -> Any:
        if place == folder:
            make_past_run(folder, "finished")
        return lock(place)

    monkeypatch.setattr(claiming, "_try_lock", finished_meanwhile)
    assert release_claim(claim(MINE, tmp_path))[1] == "new"
    make_past_run(folder, "running")
    named = claim(MINE, tmp_path, resume=str(folder))
    assert (named.state, named.lock) == ("finished", None)


# --- resume= -----------------------------------------------------------------------------------------------


def test_resume_false_makes_a_new_one(tmp_path: Path) -> None:
    make_past_run(tmp_path / "1")
    assert release_claim(claim(MINE, tmp_path, resume=False))[1] == "new"


@pytest.mark.parametrize("resume", ["local", True])
def test_resume_local_and_true_demand_one(tmp_path: Path, resume: Any) -> None:
    runs = tmp_path / "runs"
    with pytest.raises(UsageError, match="no unfinished run"):
        claim(MINE, runs, resume=resume)
    assert not runs.exists()
    make_past_run(runs / "1")
    assert release_claim(claim(MINE, runs, resume=resume))[1] == "continued"


def test_resume_remote_goes_on_only_where_a_run_came_from_the_hub(tmp_path: Path) -> None:
    make_past_run(tmp_path / "1", remote={"id": "me/mine", "step": 3})
    make_past_run(tmp_path / "2")
    assert release_claim(claim(MINE, tmp_path, resume="remote")) == (tmp_path / "1", "continued")
    make_past_run(tmp_path / "1", "finished", remote={"id": "me/mine", "step": 3})
    assert release_claim(claim(MINE, tmp_path, resume="remote"))[1] == "new"


def test_resume_by_folder(tmp_path: Path) -> None:
    folder = make_past_run(tmp_path / "elsewhere")
    assert release_claim(claim(MINE, tmp_path / "runs", resume=str(folder))) == (folder, "continued")
    make_past_run(folder, "finished")
    assert release_claim(claim(MINE, tmp_path / "runs", resume=str(folder)))[1] == "finished"
    make_past_run(folder, signature=OTHER)
    with pytest.raises(UsageError, match=r"another configuration.*from="):
        claim(MINE, tmp_path / "runs", resume=str(folder))
    with pytest.raises(UsageError, match=r"status\.json is missing"):
        claim(MINE, tmp_path / "runs", resume=str(tmp_path / "none"))


def test_resume_by_folder_of_a_living_run_names_its_writer(tmp_path: Path) -> None:
    folder = make_past_run(tmp_path / "1", "running", pid=123, host="node7")
    with claim(MINE, tmp_path), pytest.raises(UsageError, match="by process 123 on node7"):
        claim(MINE, tmp_path, resume=str(folder))


# --- output=, a sweep's point ------------------------------------------------------------------------------


def test_the_place_that_was_asked_for_is_made_or_used_when_empty(tmp_path: Path) -> None:
    place = tmp_path / "a" / "b"
    assert release_claim(claim(MINE, tmp_path, place)) == (place, "new")
    assert release_claim(claim(MINE, tmp_path, place)) == (
        place,
        "new",
    )  # begun and killed before it wrote a word


def test_the_place_of_this_run_goes_on_or_is_done(tmp_path: Path) -> None:
    place = make_past_run(tmp_path / "a", "failed")
    assert release_claim(claim(MINE, tmp_path, place)) == (place, "continued")
    with pytest.raises(UsageError, match="resume=false"):
        claim(MINE, tmp_path, place, resume=False)
    make_past_run(place, "finished")
    assert release_claim(claim(MINE, tmp_path, place)) == (place, "finished")


@pytest.mark.parametrize("status", ['{"state": "x"}', "[1]", "not JSON"])
def test_a_place_with_something_else_in_it_is_refused(tmp_path: Path, status: str) -> None:
    (tmp_path / "status.json").write_text(status)
    with pytest.raises(UsageError, match="holds no run of krill"):
        claim(MINE, tmp_path, tmp_path)
    assert read_status(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(UsageError, match="name another folder"):
        claim(MINE, tmp_path, tmp_path / "a")


def test_a_living_or_foreign_place_is_refused(tmp_path: Path) -> None:
    place = make_past_run(tmp_path / "a", "running")
    with claim(MINE, tmp_path, place), pytest.raises(UsageError, match="is being written"):
        claim(MINE, tmp_path, place)
    make_past_run(place, signature=OTHER)
    with pytest.raises(UsageError, match="another configuration"):
        claim(MINE, tmp_path, place)
