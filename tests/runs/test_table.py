"""Tables of runs: best first, runs without a result last, with all values in a CSV file."""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from krill.runs import table


def make_run(folder: Path, overrides: list[str], **status: Any) -> Path:
    folder.mkdir()
    content = {"state": "finished", "signature": "a", "overrides": overrides, **status}
    (folder / "status.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [
        make_run(tmp_path / "worse", ["lr=1", "steps=4"], metrics={"eval_loss": 3.5, "loss": 3.0}),
        make_run(tmp_path / "failed", ["lr=2", "steps=4"], state="failed", error="out of memory"),
        make_run(tmp_path / "nan", ["lr=3", "steps=4"], metrics={"eval_loss": math.nan, "loss": 1.0}),
        make_run(
            tmp_path / "best", ["lr=4", "steps=4"],
            metrics={"eval_loss": 2.5, "eval_bits_per_byte": 1.25, "loss": 9.0},
            start="2030-01-01T00:00:00+00:00", end="2030-01-01T00:00:07+00:00",
        ),
        make_run(tmp_path / "unvalidated", ["lr=5", "steps=4"], metrics={"loss": 2.0}),
        tmp_path / "not there",
    ]  # fmt: skip


def run_names(rows: list[table.RunRow]) -> list[str]:
    return [Path(row.folder).name for row in rows]


def test_best_runs_come_first_and_runs_without_validation_last(runs: list[Path]) -> None:
    assert run_names(table.sort_best_first(table.read_rows(runs))) == [
        "best",
        "worse",
        "nan",
        "unvalidated",
        "failed",
        "not there",
    ]


def test_runs_without_validation_are_sorted_by_training_loss(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / str(loss), [], metrics={"loss": loss}) for loss in (3.0, 1.0, 2.0)]
    assert run_names(table.sort_best_first(table.read_rows(folders))) == ["1.0", "2.0", "3.0"]


def test_states(runs: list[Path]) -> None:
    states = {Path(row.folder).name: row.state for row in table.read_rows(runs)}
    assert states["failed"] == "failed"
    assert states["not there"] == "not started"


def test_the_csv_has_every_value_in_the_order_of_the_table(runs: list[Path], tmp_path: Path) -> None:
    path = table.write_csv(table.sort_best_first(table.read_rows(runs)), tmp_path)
    assert path == tmp_path / "table.csv"
    with open(path, newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [Path(line["folder"]).name for line in lines][:2] == ["best", "worse"]
    assert {key: value for key, value in lines[0].items() if value and key not in ("folder", "log")} == {
        "command": "train", "overrides": "lr=4 steps=4", "state": "finished", "loss": "9.0", "eval_loss": "2.5",
        "eval_bits_per_byte": "1.25", "seconds": "7.0", "start": "2030-01-01T00:00:00+00:00",
        "end": "2030-01-01T00:00:07+00:00",
    }  # fmt: skip
    assert lines[4]["error"] == "out of memory"
    assert lines[4]["eval_loss"] == ""


def test_the_table_shows_differing_overrides_and_errors(
    runs: list[Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    table.print_table(table.sort_best_first(table.read_rows(runs[:4])), sys.stderr)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "lr=4" in captured.err
    assert "steps=4" not in captured.err  # shared by all runs
    assert captured.err.index("lr=4") < captured.err.index("lr=1") < captured.err.index("lr=2")
    assert "2.5000" in captured.err
    assert "failed: out of memory" in captured.err.replace("\n", "")


@pytest.mark.parametrize(
    "text", ["data.paths=[/some/a.jsonl]", "data.paths=[a.jsonl,b.jsonl]", "name=[bold]x"]
)
def test_brackets_in_overrides_are_shown_literally(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    folders = [
        make_run(tmp_path / "[bold]a", [text, "lr=1"], error="[/red] went wrong"),
        make_run(tmp_path / "b", ["lr=2"], metrics={"eval_loss": 2.0}),
    ]
    table.print_table(table.read_rows(folders), sys.stderr)
    printed = capsys.readouterr().err
    assert f"{text} lr=1" in printed
    assert "[bold]a: [/red] went wrong" in printed


def test_a_table_of_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    table.print_table(table.read_rows([make_run(tmp_path / "a", ["lr=7"])]), sys.stderr)
    assert "lr=7" in capsys.readouterr().err
