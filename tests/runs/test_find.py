"""Runs and sweeps by what a person calls them, whatever else lies about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from krill.errors import UsageError
from krill.runs import find, record, table


def make_run(folder: Path, **status: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    whole = {"state": "finished", "signature": folder.name[-8:] + "0" * 56, **status}
    (folder / "status.json").write_text(json.dumps(whole))
    return folder


def make_sweep(folder: Path, *points: str, **told: Any) -> Path:
    folder.mkdir(parents=True)
    listed = [{"folder": name, "overrides": [f"seed={index}"]} for index, name in enumerate(points)]
    (folder / "sweep.json").write_text(json.dumps({"command": "preprocess", "points": listed, **told}))
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_run(tmp_path / "runs/a/1-aaaa1111", start="2030-01-01T00:00:00+00:00")
    make_run(tmp_path / "runs/a/2-aaaa2222", start="2030-01-02T00:00:00+00:00")
    make_run(
        make_sweep(tmp_path / "sweeps/s", "bbbb1111", "bbbb2222", start="2030-01-03T00:00:00+00:00")
        / "bbbb1111"
    )
    return tmp_path


def test_the_newest_first_and_what_waits_for_the_first_time_is_new(root: Path) -> None:
    make_run(root / "runs/a/3-cccc1111", state="queued")  # written now
    names = [place.folder.name for place in find.runs_under(root)]
    assert names == ["s", "2-aaaa2222", "1-aaaa1111", "3-cccc1111"], "2030 is later"
    make_run(root / "runs/a/2-aaaa2222", start="2020-01-02T00:00:00+00:00")
    assert [place.folder.name for place in find.runs_under(root)][-2:] == ["3-cccc1111", "2-aaaa2222"]


def test_a_point_knows_its_sweep_and_what_was_typed_for_it_before_it_begins(root: Path) -> None:
    for row in (
        table.build_rows(find.expand_runs(find.resolve_run("s", root)))[1],
        table.read_rows([root / "sweeps/s/bbbb2222"])[0],
    ):
        assert (row.state, row.command, row.overrides) == ("not started", "preprocess", ("seed=1",))
        assert row.sweep == str(root / "sweeps/s")


@pytest.mark.parametrize("word", ["1-aaaa1111", "aaaa1", "1-", "runs/a/1*"])
def test_a_run_has_many_names(root: Path, monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    monkeypatch.chdir(root)
    assert find.resolve_run(word, root).folder == root / "runs/a/1-aaaa1111"


def test_a_glob_takes_the_newest_and_a_beginning_must_be_clear(root: Path) -> None:
    assert find.resolve_run(f"{root}/runs/a/*", root).folder.name == "2-aaaa2222"
    with pytest.raises(UsageError, match=r"1-aaaa1111.*2-aaaa2222|2-aaaa2222.*1-aaaa1111"):
        find.resolve_run("aaaa", root)


@pytest.mark.parametrize(
    ("place", "count"), [(".", 4), ("runs", 2), ("runs/a", 2), ("sweeps", 2), ("sweeps/s", 2)]
)
def test_any_folder_stands_for_the_runs_in_it(root: Path, place: str, count: int) -> None:
    assert len(find.expand_runs(find.resolve_run(str(root / place), root))) == count


def test_what_is_no_run_of_krill_is_passed_over(root: Path) -> None:
    for name, text in (("x", "no JSON"), ("y", "[]"), ("z", '{"state": ["running"], "signature": "a"}')):
        (root / "runs/foreign" / name).mkdir(parents=True)
        (root / "runs/foreign" / name / "status.json").write_text(text)
    (root / "runs/foreign/w/status.json").mkdir(parents=True)
    (root / "sweeps/odd").mkdir()
    (root / "sweeps/odd/sweep.json").write_text(
        '{"points": [3, {"folder": 4}, {"folder": "p", "overrides": 5}]}'
    )
    assert len(find.runs_under(root)) == 4
    assert [row.overrides for row in table.build_rows(find.expand_runs(find.resolve_run("odd", root)))] == [
        ()
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"start": 5}, {"start": "yesterday"}, {"metrics": None}, {"metrics": {"eval_loss": "low"}}, {"best": 3},
        {"overrides": None}, {"overrides": [1, {}]}, {"name": None}, {"submission": 5, "state": "queued"},
        {"submission": "/x"}, {"pid": "p", "state": "running"}, {"starts": "2"}, {"host": []},
    ],
)  # fmt: skip
def test_what_is_odd_in_a_status_is_left_out(root: Path, wrong: dict[str, Any]) -> None:
    run = make_run(root / "runs/a/1-aaaa1111", **wrong)
    (run / "metrics.jsonl").write_text('5\n{"step": 3}\n["x"]\n')
    rows = table.build_rows([run for place in find.runs_under(root) for run in find.expand_runs(place)])
    assert len(json.loads(table.to_json(rows))) == 4
    assert {row.step for row in rows} == {3, None}
    table.render_table(rows)
    table.to_csv(rows)


def test_each_status_is_read_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def counted(folder: Path) -> dict[str, Any] | None:
        read.append(folder)
        return record.read_status(folder)

    for module in ("find", "standing"):
        monkeypatch.setattr(f"krill.runs.{module}.read_status", counted)
    table.build_rows([run for place in find.runs_under(root) for run in find.expand_runs(place)])
    assert sorted(read) == sorted({*read})
