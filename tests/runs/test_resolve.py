"""One way to name a run: by folder, glob, name, signature, last, SWEEP/best; the newest that has what is needed."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from krill.errors import UsageError
from krill.runs.resolve import (
    BRANCHING_POINT,
    FINAL_MODEL,
    MODEL,
    OVERRIDES,
    RESUMABLE,
    Need,
    find_newest_run,
    resolve_all_models,
    resolve_run,
    resolve_run_folder,
)

FINISHED, STOPPED, QUEUED, OLD, POINT, BETTER = (
    "runs/a/2-bbbb2222", "runs/a/3-cccc3333", "runs/a/5-eeee5555", "runs/b/9-aaaa1111", "sweeps/s/dddd0001",
    "sweeps/s/dddd0002",
)  # fmt: skip


def make_run(folder: Path, day: int | None, state: str = "finished", **status: Any) -> None:
    """Makes a run of the name of its parent folder; `day`: of its start, None: it has not started."""
    folder.mkdir(parents=True)
    (folder / ".lock").touch()
    if day is not None:
        status["start"] = f"2030-01-0{day}T00:00:00+00:00"
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "overrides.yaml").write_text("[]")
        (folder / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    if state == "finished":
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text("{}")
    content = {"state": state, "signature": folder.name[-8:] + "0" * 56, "name": folder.parent.name, **status}
    (folder / "status.json").write_text(json.dumps(content))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory with an outputs folder in which the order of names is not that of time."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "outputs"
    make_run(root / FINISHED, 3)
    make_run(root / STOPPED, 4, "stopped")
    make_run(root / QUEUED, None, "queued", start="2030-01-05T00:00:00+00:00")
    make_run(root / OLD, 1)
    make_run(root / POINT, 2, metrics={"eval_loss": 3.0})
    make_run(root / BETTER, 2, metrics={"eval_loss": 2.0})
    points = [{"folder": "dddd0001"}, {"folder": "dddd0002"}, {"folder": "dddd0003"}]
    record = {"command": "train", "points": points, "start": "2030-01-02T00:00:00+00:00"}
    (root / "sweeps/s/sweep.json").write_text(json.dumps(record))
    (root / "runs/a/6-lock").mkdir()  # an empty folder is not a run
    return root


@pytest.mark.parametrize(
    ("text", "folder"),
    [
        (f"outputs/{OLD}", OLD), ("9-aaaa1111", OLD), ("aaaa1111", OLD), ("aaaa", OLD), ("9-", OLD), ("b", OLD),
        ("outputs/runs/b/*", OLD), ("a", QUEUED), ("outputs/runs/a/*", QUEUED), ("last", QUEUED), ("s", "sweeps/s"),
        ("outputs/sweeps/*", "sweeps/s"), ("s/best", BETTER), ("outputs/sweeps/s/best", BETTER), ("dddd0001", POINT),
        ("outputs/runs/a", "runs/a"),
    ],
)  # fmt: skip
def test_a_run_or_a_sweep_has_many_names(root: Path, text: str, folder: str) -> None:
    assert resolve_run(text, root).folder == root / folder


@pytest.mark.parametrize(
    ("text", "need", "folder"),
    [
        ("a", FINAL_MODEL, FINISHED), ("a", MODEL, STOPPED), ("a", OVERRIDES, STOPPED), ("a", RESUMABLE, QUEUED),
        ("b", RESUMABLE, OLD), ("outputs/runs/*/*", FINAL_MODEL, FINISHED), ("outputs/runs/*", MODEL, STOPPED),
        ("last", FINAL_MODEL, FINISHED), ("last", MODEL, STOPPED), ("outputs/runs/a", FINAL_MODEL, FINISHED),
        ("s/best", MODEL, BETTER), ("outputs/sweeps/s/best", OVERRIDES, BETTER), ("bbbb", BRANCHING_POINT, FINISHED),
    ],
)  # fmt: skip
def test_the_newest_run_that_has_what_is_needed_is_meant(
    root: Path, text: str, need: Need, folder: str
) -> None:
    assert resolve_run_folder("key", text, root, need) == Path("outputs", folder)


@pytest.mark.parametrize(
    "text", ["outputs/runs/b/9-aaaa1111", "outputs/runs/b/9-aaaa1111/model", "~/outputs/runs/b/9-aaaa1111"]
)
def test_a_folder_that_has_it_is_taken_as_it_is_written(
    root: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(root.parent))
    assert resolve_run_folder("model", text, root, MODEL) == Path(text).expanduser()


def test_a_glob_matches_folders_of_models_by_their_time(root: Path) -> None:
    for name, time in (("x", 2.1e9), ("y", 2.0e9)):
        (root / "models" / name).mkdir(parents=True)
        (root / "models" / name / "config.json").write_text("{}")
        os.utime(root / "models" / name, (time, time))
    assert resolve_run_folder("model", "outputs/models/*", root, MODEL) == Path("outputs/models/x")
    assert resolve_run_folder("model", "outputs/*/*/*/model", root, MODEL).name == "model"


def test_the_same_command_branches_off_the_same_run_again(root: Path) -> None:
    assert resolve_run_folder("branch", "a", root, BRANCHING_POINT) == Path("outputs", STOPPED)
    make_run(root / "runs/a/7-ffff7777", 6, "stopped", branch={"run": STOPPED, "step": 2})
    assert resolve_run_folder("branch", "a", root, BRANCHING_POINT) == Path("outputs", STOPPED)
    assert resolve_run_folder("branch", "ffff", root, BRANCHING_POINT).name == "7-ffff7777"
    checkpoint = f"outputs/{STOPPED}/checkpoints/checkpoint-2"
    assert resolve_run_folder("branch", checkpoint, root, BRANCHING_POINT) == Path(checkpoint)


def test_a_point_is_not_named_by_its_own_sweep(root: Path) -> None:
    make_run(root / "sweeps/s/dddd0003", 7)
    assert find_newest_run(root, FINAL_MODEL) == Path("outputs/sweeps/s/dddd0003")
    chosen = resolve_run_folder("model.from", "last", root, FINAL_MODEL, root / "sweeps/s")
    assert chosen == Path("outputs", FINISHED)


def test_the_newest_run_of_exactly_one_name(root: Path) -> None:
    make_run(root / "runs/ab/8-ffff8888", 8)
    assert find_newest_run(root, FINAL_MODEL, "a") == Path("outputs", FINISHED)
    assert find_newest_run(root, FINAL_MODEL, "none") is None
    assert resolve_run("a", root).folder == root / QUEUED, "the whole name comes before a prefix"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sa", r"key=sa: not the name of a run or sweep, nor a folder \(relative to .*\)\. Available: a, s, b"),
        ("bbbb22223", r"Did you mean bbbb2222|Available: a"),
        ("none/*", r"key=none/\*: no run matches \(relative to .*\)\. Available: a, s, b"),
        ("outputs/sweeps/s", r"a sweep; use key=outputs/sweeps/s/best, or one of its points: dddd0001, dddd0002"),
        ("s", r"key=s: a sweep; use key=s/best, or one of its points"),
        (f"outputs/{QUEUED}", rf"outputs/{QUEUED} has no model or checkpoint; .*krill-runs show outputs/{QUEUED}"),
        ("a/best", r"no run in outputs/runs/a/.* has a validation loss"),
        ("", r"key=: not the name of a run or sweep"),
        ("outputs/runs/a/6-lock", r"6-lock: no run, and no model or checkpoint in it\. Available: a"),
    ],
)  # fmt: skip
def test_an_error_says_what_to_use_instead(root: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        resolve_run_folder("key", text, root, MODEL)
    assert "\n" not in str(error.value)


def test_runs_without_what_is_needed_are_counted(root: Path) -> None:
    make_run(root / "runs/c/1-ffff1111", 1, "failed")
    make_run(root / "runs/c/2-ffff2222", 2, "failed")
    with pytest.raises(
        UsageError, match=r"model=c: none of these 2 runs has a model; .* runs/c/2-ffff2222|2-ffff"
    ):
        resolve_run_folder("model", "c", root, FINAL_MODEL)


def test_the_beginning_of_several_names_is_ambiguous(root: Path) -> None:
    make_run(root / "runs/c/1-aaaa2222", 1)
    with pytest.raises(
        UsageError, match=re.compile("key=aaaa is ambiguous: it matches .*1-aaaa2222|9-aaaa1111")
    ):
        resolve_run_folder("key", "aaaa", root, MODEL)


def test_an_empty_outputs_folder_is_no_dead_end(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"There are no runs in .*; train one with krill-train"):
        resolve_run("last", tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s", [POINT, BETTER]),
        ("outputs/sweeps/s", [POINT, BETTER]),
        ("outputs/runs/*", [FINISHED, STOPPED, OLD]),
        ("outputs/runs/a/*", [FINISHED, STOPPED]),
    ],
)
def test_a_glob_and_a_sweep_name_all_models(
    root: Path, text: str, expected: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert sorted(resolve_all_models("model", text, root)) == sorted(f"outputs/{name}" for name in expected)
    assert "no model" in caplog.text  # of a point that has not started, and of a queued run


@pytest.mark.parametrize(
    "text", ["last", "a", "s/best", f"outputs/{FINISHED}", "outputs/runs/a", "user/model"]
)
def test_any_other_name_is_one_model(root: Path, text: str) -> None:
    assert resolve_all_models("model", text, root) == [text]


def test_a_glob_without_a_model_is_an_error(root: Path) -> None:
    with pytest.raises(UsageError, match=r"model=nothing\*: no run matches"):
        resolve_all_models("model", "nothing*", root)
    with pytest.raises(UsageError, match="none of these 1 runs has a model"):
        resolve_all_models("model", f"outputs/{QUEUED[:-1]}*", root)
