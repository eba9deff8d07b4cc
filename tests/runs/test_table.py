"""Tables of runs: best first, runs without a result last, with all values in a CSV file."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from krill.cli import app, runs_view
from krill.data.progress import format_dropped_table
from krill.errors import UsageError
from krill.runs import table
from krill.runs.scores import TaskScore
from krill.tables import get_terminal_width


class Terminal(io.StringIO):
    """A terminal of some columns."""

    def __init__(self, columns: int, monkeypatch: pytest.MonkeyPatch):
        super().__init__()
        monkeypatch.setenv("COLUMNS", str(columns))

    def isatty(self) -> bool:
        return True


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


@pytest.mark.parametrize("columns", [80, 100, 120])
def test_scores_are_folded_or_left_out(tmp_path: Path, columns: int) -> None:
    row = table.read_rows([make_run(tmp_path / "a", ["lr=1"])])[0]
    scores = tuple(
        TaskScore(task, "accuracy", 0.5, 0.4, 0.6, 300, "model") for task in ("english_pairs", "cloze")
    )
    rows = [replace(row, overrides=(f"data.paths=[{name}]" * 3,), scores=scores) for name in ("a", "b")]
    lines = table.format_runs(rows, columns, full_paths=True)
    assert max(map(cell_len, lines[:2])) <= columns
    assert ("scores" in lines[0]) == (columns >= table.MIN_WIDTH_OF_SCORES)
    assert ("cloze" in "\n".join(lines)) == ("scores" in lines[0]), "folded, not cut"


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_table_fits_the_terminal(tmp_path: Path, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    metrics = {"eval_loss": 2.5, "eval_bits_per_byte": 1.25, "loss": 9.0}
    parent = tmp_path / "outputs/runs/한국어-영어-말뭉치"
    parent.mkdir(parents=True)
    overrides = ["experiment=한국어_영어", "optimizer=muon_keller", "data.minhash.threshold=0.8"]
    folders = [
        make_run(
            parent / f"2030-01-01_00-00-0{seed}-aaaa111{seed}", [*overrides, f"seed={seed}"], metrics=metrics
        )
        for seed in range(2)
    ]
    folders.append(
        make_run(parent / "2030-01-01_00-00-09-bbbb1111", ["lr=1"], state="failed", error="메모리 " * 30)
    )
    rows = table.read_rows(folders)
    terminal = Terminal(columns, monkeypatch)
    table.print_table(rows, terminal, full_paths=True)
    lines = terminal.getvalue().splitlines()
    paths = [str(folder.relative_to(tmp_path)) for folder in folders]
    assert [line for line in lines if cell_len(line) > columns and "/" not in line] == []
    assert [line.strip() for line in lines if line.strip() in paths] == paths, "each on a line of its own"
    assert "val. loss" in lines[0]
    assert ("train loss" in lines[0]) == (columns == 120)
    letters = "".join("".join(lines).split())
    assert "seed=0" in letters
    assert "seed=1" in letters
    plain = io.StringIO()
    table.print_table(rows, plain, full_paths=True)
    header, first = plain.getvalue().splitlines()[:2]
    assert "train loss" in header
    assert first.endswith(paths[0])
    assert f"{' '.join([*overrides, 'seed=0'])}" in first, "nothing is left out or shortened"


def test_differences_fit_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = table.read_rows([make_run(tmp_path / name, []) for name in "abc"])
    differing = {
        "data.paths": [["말뭉치/가.jsonl"] * 3, ["b.jsonl"], ["c.jsonl"]],
        "lr": [0.001, 0.002, 0.003],
    }
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    runs_view.print_differences(rows, differing)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(cell_len, lines)) <= 40
    assert lines[lines.index("lr") :] == ["lr", "  #1    0.001", "  #2    0.002", "  #3    0.003"]


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_messages_and_the_table_of_dropped_documents_fit_the_terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal(columns, monkeypatch)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(logging.getLogger("krill"), "handlers", [])
    app.configure_logging()
    example = {"place": "한국어 말뭉치.jsonl:12", "text": "옛날 옛적에 호랑이가 담배 피우던 시절에 " * 3}
    dropped = {"repetition: 반복된 줄": {"documents": 1234, "bytes": 5e6, "examples": [example]}}
    for line in format_dropped_table(dropped, 9999, get_terminal_width(sys.stderr)):
        app.log.info("%s", line)
    app.log.info("optimizer   muon: %s", "임베딩 786,432 at 0.003, vectors 1,728 at 0.003, " * 3)
    app.print_error("train", UsageError("data.paths: " + "파일이 없습니다 " * 12))
    lines = terminal.getvalue().splitlines()
    assert max(map(cell_len, lines)) <= columns
    assert "1,234" in terminal.getvalue()
    start = next(index for index, line in enumerate(lines) if line.startswith("optimizer   muon"))
    assert lines[start + 1].startswith(" " * 12)
    words = set(" ".join(lines).split())
    assert {"임베딩", "786,432", "vectors", "1,728", "파일이", "없습니다"} <= words, "no word is split"
