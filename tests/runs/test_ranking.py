"""Runs are ranked apart for each held-out set, and runs with several tokenizers by bits per byte."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest

from krill.cli import runs as runs_command
from krill.cli import runs_view
from krill.errors import UsageError
from krill.runs import table
from krill.runs.find import RunGroup, run_at
from krill.runs.resolve import FINAL_MODEL, resolve_run
from krill.runs.summary import summarize_sweep

POINTS: dict[str, tuple[str, str, float, float]] = {
    "p1": ("data=a", "aaaaaaaa11", 3.0, 1.5),
    "p2": ("data=b", "bbbbbbbb22", 1.0, 0.5),
    "p3": ("data=a", "aaaaaaaa11", 2.0, 1.0),
    "p4": ("data=b", "bbbbbbbb22", 1.2, 0.6),
    "p5": ("data=a", "aaaaaaaa11", 4.0, 2.0),
}
"""Folder: override, held-out set, nats per token, bits per byte."""


def write_sweep(folder: Path, tokenizers: str = "ttttt") -> RunGroup:
    """Writes a finished sweep with the points above; `tokenizers` has a letter for the tokenizer of each."""
    for (name, (override, held_out, loss, bits)), tokenizer in zip(POINTS.items(), tokenizers, strict=True):
        (folder / name).mkdir(parents=True)
        status: dict[str, Any] = {
            "state": "finished", "signature": name, "overrides": [override], "command": "train",
            "data": {"signature": "s" * 64, "validation_set": held_out}, "tokenizer": {"signature": tokenizer},
            "metrics": {"eval_loss": loss, "eval_bits_per_byte": bits, "loss": 9.0},
        }  # fmt: skip
        (folder / name / "status.json").write_text(json.dumps(status))
    points = [{"folder": name, "overrides": [POINTS[name][0]]} for name in POINTS]
    (folder / "sweep.json").write_text(json.dumps({"command": "train", "typed": [], "points": points}))
    group = run_at(folder)
    assert isinstance(group, RunGroup)
    return group


def rank(sweep: RunGroup) -> list[str]:
    return [Path(row.folder).name for row in table.sort_best_first(table.build_rows(sweep.runs))]


def test_each_held_out_set_has_its_own_ranking(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = write_sweep(tmp_path / "s")
    assert rank(sweep) == ["p3", "p1", "p5", "p2", "p4"]
    summary = summarize_sweep(table.build_rows(sweep.runs))
    assert summary == (
        "5 points: 5 finished; best of held-out set aaaaaaaa 2.0000, p3 (data=a); "
        "best of held-out set bbbbbbbb 1.0000, p2 (data=b)"
    )
    runs_view.print_sweep(sweep)
    shown = capsys.readouterr().out
    assert "held-out" in shown
    assert "2 held-out sets: losses of different ones are not comparable" in shown
    (first,) = [line for line in shown.splitlines() if line.split()[:1] == ["1"]]
    assert "aaaaaaaa" in first


def test_one_held_out_set_has_no_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = write_sweep(tmp_path / "s")
    runs_view.print_sweep(RunGroup(sweep.folder, sweep.sweep_record, sweep.runs[::4]))
    assert "held-out" not in capsys.readouterr().out


def test_the_comparison_ranks_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sweep(tmp_path / "s")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["krill-runs", "compare", "s", "--json"])
    assert runs_command.main() == 0
    rows = json.loads(capsys.readouterr().out)["runs"]
    assert [row["validation_set"] for row in rows] == ["aaaaaaaa11"] * 3 + ["bbbbbbbb22"] * 2


def test_the_best_of_several_held_out_sets_is_an_error(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "s")
    with pytest.raises(UsageError, match=r"2 held-out sets, .* the best run of each: .*p3, .*p2$"):
        resolve_run(f"{sweep.folder}/best", tmp_path)
    assert not FINAL_MODEL.is_met(sweep.folder)


def test_several_tokenizers_are_ranked_by_bits_per_byte(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "s", "tuttt")
    status = json.loads((sweep.folder / "p2/status.json").read_text())
    status["metrics"]["eval_bits_per_byte"] = 0.7  # fewer nats per token of shorter tokens
    (sweep.folder / "p2/status.json").write_text(json.dumps(status))
    group = run_at(sweep.folder)
    assert isinstance(group, RunGroup)
    assert rank(group) == ["p3", "p1", "p5", "p4", "p2"]


def test_runs_of_earlier_versions_are_apart_by_their_tokens(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "s")
    for name in ("p1", "p2"):
        path = sweep.folder / name / "status.json"
        status = json.loads(path.read_text())
        status["data"] = {"signature": name * 32}
        path.write_text(json.dumps(status))
    group = run_at(sweep.folder)
    assert isinstance(group, RunGroup)
    assert table.count_validation_sets(table.build_rows(group.runs)) == 4


def test_a_search_that_learns_ends_where_losses_are_not_comparable(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from krill.sweep.session import Sweep
    from krill.sweep.sweeper import _ask_next_batch

    sweep = write_sweep(tmp_path / "s")

    class Learning:
        is_adaptive = True

    class Points(Sweep):
        def build_rows(self) -> list[table.RunRow]:
            return table.build_rows(sweep.runs)

    session = Points(sweep.folder, "train", dry_run=False, start="")
    with caplog.at_level(logging.ERROR, "krill"):
        search: Any = Learning()
        assert _ask_next_batch(search, session, []) == []
    assert session.has_invalid_points
    assert "not comparable" in caplog.text
