"""Runs and sweeps are found in folders, whatever other files there are."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from krill.checksum import write_checksummed_json
from krill.errors import KrillError, UsageError
from krill.runs import find, record, table
from krill.runs.resolve import resolve_run
from krill.runs.summary import suggest_commands


def make_run(folder: Path, **status: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = {"state": "finished", "signature": folder.name[-8:] + "0" * 56, **status}
    (folder / "status.json").write_text(json.dumps(content))
    return folder


def make_sweep(folder: Path, *points: str, **entries: Any) -> Path:
    folder.mkdir(parents=True)
    listed = [{"folder": name, "overrides": [f"seed={index}"]} for index, name in enumerate(points)]
    (folder / "sweep.json").write_text(json.dumps({"command": "preprocess", "points": listed, **entries}))
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


def test_newest_runs_come_first_and_queued_runs_count_from_their_submission(root: Path) -> None:
    make_run(root / "runs/a/3-cccc1111", state="queued")  # written now
    names = [item.folder.name for item in find.runs_under(root)]
    assert names == ["s", "2-aaaa2222", "1-aaaa1111", "3-cccc1111"], "2030 is later"
    make_run(root / "runs/a/2-aaaa2222", start="2020-01-02T00:00:00+00:00")
    assert [item.folder.name for item in find.runs_under(root)][-2:] == ["3-cccc1111", "2-aaaa2222"]


def test_a_point_has_its_sweep_and_overrides_before_it_starts(root: Path) -> None:
    for row in (
        table.build_rows(find.expand_runs(resolve_run("s", root)))[1],
        table.read_rows([root / "sweeps/s/bbbb2222"])[0],
    ):
        assert (row.state, row.command, row.overrides) == ("not started", "preprocess", ("seed=1",))
        assert row.sweep == str(root / "sweeps/s")


@pytest.mark.parametrize(
    ("folder", "count"), [(".", 4), ("runs", 2), ("runs/a", 2), ("sweeps", 2), ("sweeps/s", 2)]
)
def test_a_folder_matches_the_runs_in_it(root: Path, folder: str, count: int) -> None:
    assert len(find.expand_runs(resolve_run(str(root / folder), root))) == count


def test_files_that_are_not_runs_are_ignored(root: Path) -> None:
    for name, text in (("x", "no JSON"), ("y", "[]"), ("z", '{"state": ["running"], "signature": "a"}')):
        (root / "runs/foreign" / name).mkdir(parents=True)
        (root / "runs/foreign" / name / "status.json").write_text(text)
    (root / "runs/foreign/w/status.json").mkdir(parents=True)
    (root / "sweeps/odd").mkdir()
    (root / "sweeps/odd/sweep.json").write_text(
        '{"points": [3, {"folder": 4}, {"folder": "p", "overrides": 5}]}'
    )
    assert len(find.runs_under(root)) == 4
    assert [row.overrides for row in table.build_rows(find.expand_runs(resolve_run("odd", root)))] == [()]


def test_a_run_with_a_damaged_status_is_found(root: Path) -> None:
    folder = root / "runs/a/2-aaaa2222"
    (folder / ".lock").touch()
    (folder / "status.json").write_text('{"state":')
    assert len(find.runs_under(root)) == 3
    run = resolve_run(str(folder), root)
    assert isinstance(run, find.Run)
    (row,) = table.build_rows([run])
    assert (row.state, row.error[:22]) == ("damaged", "status.json is damaged")
    assert suggest_commands(run, row)[0].endswith("resume_changed=true")


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"])
def test_a_damaged_sweep_is_reported(
    root: Path, content: bytes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("krill"), "propagate", True)
    (root / "sweeps/s/sweep.json").write_bytes(content)
    with pytest.raises(KrillError, match=r"sweep\.json is damaged .*remove it"):
        find.read_sweep(root / "sweeps/s")
    assert len(find.expand_runs(resolve_run(str(root / "sweeps/s"), root))) > 0
    assert "sweep.json is damaged" in caplog.text


def test_a_changed_sweep_is_reported_and_one_of_an_earlier_version_is_read(root: Path) -> None:
    sweep = root / "sweeps/s"
    record = find.read_sweep(sweep)
    write_checksummed_json(sweep / "sweep.json", record)
    assert find.read_sweep(sweep) == record
    content = (sweep / "sweep.json").read_bytes()
    for change in ((b"seed=1", b"seed=3"), (b'"checksum"', b'"ckecksum"'), (b'"points"', b'"pointr"')):
        (sweep / "sweep.json").write_bytes(content.replace(*change))
        with pytest.raises(UsageError, match=r"sweep\.json is damaged \(it has changed .*remove it"):
            find.read_sweep(sweep)


@pytest.mark.parametrize(
    "entries",
    [
        {"start": 5}, {"start": "yesterday"}, {"metrics": None}, {"metrics": {"eval_loss": "low"}}, {"best": 3},
        {"overrides": None}, {"overrides": [1, {}]}, {"name": None}, {"submission": 5, "state": "queued"},
        {"submission": "/x"}, {"pid": "p", "state": "running"}, {"starts": "2"}, {"host": []},
    ],
)  # fmt: skip
def test_invalid_entries_of_a_status_are_ignored(root: Path, entries: dict[str, Any]) -> None:
    run = make_run(root / "runs/a/1-aaaa1111", **entries)
    (run / "metrics.jsonl").write_text('5\n{"step": 3}\n["x"]\n')
    rows = table.build_rows([run for item in find.runs_under(root) for run in find.expand_runs(item)])
    assert len(json.loads(table.to_json(rows))) == 4
    assert {row.step for row in rows} == {3, None}
    table.format_runs(rows, 80)
    table.to_csv(rows)


def test_each_status_is_read_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders: list[Path] = []

    def count_and_read(folder: Path) -> dict[str, Any] | None:
        folders.append(folder)
        return record.read_status(folder)

    for module in ("find", "run_state"):
        monkeypatch.setattr(f"krill.runs.{module}.read_status", count_and_read)
    table.build_rows([run for item in find.runs_under(root) for run in find.expand_runs(item)])
    assert sorted(folders) == sorted({*folders})
