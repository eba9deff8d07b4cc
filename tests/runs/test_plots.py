"""The plot of a run is a picture, whatever lines the run has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes

from krill.runs.plots import plot_losses

LINES = [
    {"step": 1, "loss": 5.0}, {"step": 2, "loss": 4.0}, {"step": 2, "eval_loss": 4.5}, {"step": 3, "loss": 3.0},
]  # fmt: skip


def write_metrics_lines(folder: Path, lines: list[dict[str, Any]]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_it_draws_both_losses_and_the_reference_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, Any] = {}
    plot, line = Axes.plot, Axes.axhline

    def remember(self: Axes, x: Any, y: Any, *rest: Any, label: str, **more: Any) -> Any:
        drawn[label] = list(zip(x, y, strict=True))
        return plot(self, x, y, *rest, label=label, **more)

    def remember_line(self: Axes, y: float, **more: Any) -> Any:
        drawn.setdefault("lines", []).append(y)
        return line(self, y, **more)

    monkeypatch.setattr(Axes, "plot", remember)
    monkeypatch.setattr(Axes, "axhline", remember_line)
    write_metrics_lines(tmp_path, LINES)
    path = plot_losses(tmp_path, uniform=6.0, unigram=4.2)
    assert path == tmp_path / "loss.png"
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert drawn == {
        "training": [(1, 5.0), (2, 4.0), (3, 3.0)],
        "validation": [(2, 4.5)],
        "lines": [6.0, 4.2],
    }
    assert {entry.name for entry in tmp_path.iterdir()} == {"metrics.jsonl", "loss.png"}


def test_without_validation_and_reference_points(tmp_path: Path) -> None:
    write_metrics_lines(tmp_path, LINES[:2])
    assert plot_losses(tmp_path, None, None).stat().st_size > 1000


def test_figures_are_closed(tmp_path: Path) -> None:
    write_metrics_lines(tmp_path, LINES)
    before = pyplot.get_fignums()
    plot_losses(tmp_path, None, None)
    assert pyplot.get_fignums() == before
