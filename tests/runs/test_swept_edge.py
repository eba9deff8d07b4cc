"""The best learning rate of a sweep is compared with those that were swept beside it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from krill.cli import runs as runs_command
from krill.cli import runs_view
from krill.runs.find import RunGroup, run_at
from krill.runs.swept_edge import SweptEdge, find_swept_edge
from krill.runs.table import build_rows

Points = list[tuple[list[str], float | None]]
"""Overrides and validation loss of each point."""


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KRILL_OUTPUTS", str(tmp_path / "outputs"))


def write_sweep(points: Points, *typed: str) -> RunGroup:
    folder = Path("outputs/sweeps/rates").absolute()
    for number, (overrides, loss) in enumerate(points):
        (folder / str(number)).mkdir(parents=True)
        status: dict[str, Any] = {
            "state": "failed" if loss is None else "finished", "signature": "a", "overrides": overrides,
            "command": "train", "metrics": {} if loss is None else {"eval_loss": loss},
        }  # fmt: skip
        (folder / str(number) / "status.json").write_text(json.dumps(status))
    record = {"command": "train", "typed": list(typed), "points": [
        {"folder": str(number), "overrides": overrides} for number, (overrides, _) in enumerate(points)
    ]}  # fmt: skip
    (folder / "sweep.json").write_text(json.dumps(record))
    group = run_at(folder)
    assert isinstance(group, RunGroup)
    return group


def find(sweep: RunGroup) -> SweptEdge | None:
    return find_swept_edge(build_rows(sweep.runs), sweep.folder, sweep.sweep_record)


def test_the_highest_rate_is_an_edge(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = write_sweep(
        [(["lr=1e-3"], 4.0), (["lr=3e-3"], 3.0), (["lr=2e-3"], 3.5)], "lr=1e-3,3e-3,2e-3", "name=rates"
    )
    edge = find(sweep)
    assert edge is not None
    assert edge.swept == [0.001, 0.002, 0.003]
    assert edge.describe() == (
        "lr=0.003 of the best point is the highest of 0.001, 0.002, 0.003: a higher one may be better"
    )
    assert edge.next == "krill-train -m lr=1e-3,3e-3,2e-3,0.0045 name=rates"
    runs_view.print_sweep(sweep)
    shown = capsys.readouterr().out
    assert edge.describe() in " ".join(shown.split())
    assert edge.next in " ".join(shown.split())
    monkeypatch.setattr(sys, "argv", ["krill-runs", "show", "rates", "--json"])
    assert runs_command.main() == 0
    assert json.loads(capsys.readouterr().out)[0]["edge"]["best"] == 0.003


def test_the_lowest_rate_is_an_edge() -> None:
    edge = find(write_sweep([(["lr=1e-2"], 3.0), (["lr=1e-1"], 4.0)], "lr=1e-2,1e-1"))
    assert edge is not None
    assert "the lowest of 0.01, 0.1: a lower one" in edge.describe()
    assert edge.next.endswith("lr=1e-2,1e-1,0.001")


@pytest.mark.parametrize(
    "points",
    [
        [(["lr=1"], 4.0), (["lr=2"], 3.0), (["lr=3"], 5.0)],
        [(["lr=1"], 4.0), (["lr=2"], 3.0), (["lr=3"], None)],  # a rate that failed was tried
        [(["lr=1"], 4.0)],
        [(["steps=1"], 4.0), (["steps=2"], 3.0)],
        [(["lr=1"], None), (["lr=2"], None)],
    ],
)
def test_no_edge(points: Points) -> None:
    assert find(write_sweep(points, "lr=1,2,3")) is None


def test_rates_are_compared_beside_equal_overrides() -> None:
    edge = find(
        write_sweep(
            [
                (["lr=1", "optimizer=adamw"], 5.0),
                (["lr=2", "optimizer=adamw"], 4.0),
                (["lr=8", "optimizer=muon_keller"], 3.0),
                (["lr=16", "optimizer=muon_keller"], 3.5),
            ],
            "lr=1,2,8,16",
        )
    )
    assert edge is not None
    assert edge.swept == [8, 16]


def test_an_interval_has_an_edge_and_no_command() -> None:
    edge = find(
        write_sweep([(["lr=0.1", "seed=1"], 4.0), (["lr=0.2", "seed=2"], 3.0)], "lr=interval(0.1,0.3)")
    )
    assert edge is not None
    assert edge.next == ""
