"""Summaries of runs and sweeps, and the commands that they suggest."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from krill.config.schema import InferConfig
from krill.runs import table
from krill.runs.find import Run, RunGroup, run_at
from krill.runs.record import Record
from krill.runs.summary import describe_run, describe_sweep, suggest_commands, summarize_sweep

CONFIG = InferConfig.model_construct(name="a")


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KRILL_OUTPUTS", str(tmp_path / "outputs"))


def make_run(folder: Path, overrides: list[str], error: ValueError | None = None, **entries: Any) -> Run:
    """Creates a run through its record."""
    folder.mkdir(parents=True)
    recorded = Record(folder)
    with suppress(ValueError), recorded.record_lifecycle(CONFIG, "5" * 64, overrides):
        recorded.update(**entries)
        if error:
            raise error
    run = run_at(folder)
    assert isinstance(run, Run)
    return run


def suggest_for(run: Run) -> list[str]:
    return suggest_commands(run, table.build_rows([run])[0])


@pytest.fixture
def sweep(tmp_path: Path) -> RunGroup:
    folder = tmp_path / "outputs/sweeps/s"
    points = {"p1": ["steps=4", "lr=1"], "p2": ["steps=4", "lr=2"], "p3": ["steps=4", "lr=3"]}
    make_run(folder / "p1", points["p1"], metrics={"eval_loss": 3.0})
    make_run(folder / "p2", points["p2"], metrics={"eval_loss": 1.5})
    record = {
        "command": "train", "typed": ["steps=4", "lr=1,2,3", "prompt='a b'", "epochs=null"], "pid": os.getpid(),
        "points": [{"folder": name, "overrides": overrides} for name, overrides in points.items()],
    }  # fmt: skip
    (folder / "sweep.json").write_text(json.dumps(record))
    group = run_at(folder)
    assert isinstance(group, RunGroup)
    return group


def test_a_sweep_is_summarized_in_one_line_with_its_best_point(sweep: RunGroup) -> None:
    line = summarize_sweep(table.build_rows(sweep.runs))
    assert line == "3 points: 2 finished, 1 not started; best 1.5000, p2 (lr=2)"
    assert summarize_sweep(table.build_rows(sweep.runs[2:])) == "1 points: 1 not started"


def test_the_description_of_a_sweep_has_the_best_point_first(sweep: RunGroup) -> None:
    described = describe_sweep(sweep)
    assert described["command"] == "train"
    assert [Path(point["folder"]).name for point in described["points"]] == ["p2", "p1", "p3"]


def test_the_description_of_a_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", ["lr=1"], metrics={"eval_loss": 2.0, "perplexity": 7.4})
    described = describe_run(run, *table.build_rows([run]))
    assert (described["state"], described["starts"], described["eval_loss"], described["perplexity"]) == (
        "finished",
        1,
        2.0,
        7.4,
    )
    assert described["signature"] == "5" * 64
    assert "krill" in described["versions"]
    json.dumps(described, allow_nan=False)


def test_the_description_has_the_actual_state(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", [], state="running")
    Record(tmp_path / "a").update(state="running", pid=2**22 + 1, end=None)
    run = Run(run.folder, Record(run.folder).status)
    assert describe_run(run, *table.build_rows([run]))["state"] == "killed"


def test_suggestions_for_a_finished_run(tmp_path: Path) -> None:
    assert suggest_for(make_run(tmp_path / "my run", [])) == ["krill-infer 'my run'"]
    store = str(tmp_path / "outputs/data/x")
    assert suggest_for(make_run(tmp_path / "b", [], command="preprocess", result=store)) == [
        "krill-inspect outputs/data/x"
    ]
    assert suggest_for(make_run(tmp_path / "c", [], command="infer")) == []


def test_a_failed_run_is_resumed_by_the_same_command(tmp_path: Path) -> None:
    failed = make_run(tmp_path / "a", ["lr=1", "data.paths=[a b.txt]"], ValueError("no luck"))
    assert suggest_for(failed) == ["krill-runs tail a", "krill-train lr=1 'data.paths=[a b.txt]'"]
    assert describe_run(failed, *table.build_rows([failed]))["error"] == "ValueError: no luck"


def test_a_missing_point_is_run_by_the_command_of_its_sweep(sweep: RunGroup, tmp_path: Path) -> None:
    command = "krill-train -m steps=4 lr=1,2,3 'prompt='\"'\"'a b'\"'\"''"
    assert suggest_for(sweep.runs[2]) == [command]
    moved = sweep.folder.rename(tmp_path / "mine")
    group = run_at(moved)
    assert isinstance(group, RunGroup)
    assert suggest_for(group.runs[2]) == [f"{command} output=mine"]
