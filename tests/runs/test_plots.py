"""The losses of a run are plotted for any lines of metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes

from krill.runs.plots import plot_losses, plot_scores

LINES = [
    {"step": 1, "loss": 5.0}, {"step": 2, "loss": 4.0}, {"step": 2, "eval_loss": 4.5}, {"step": 3, "loss": 3.0},
]  # fmt: skip


def write_metrics_lines(folder: Path, lines: list[dict[str, Any]]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_plot_has_both_losses_and_the_baselines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plotted: dict[str, Any] = {}
    plot, axhline = Axes.plot, Axes.axhline

    def record_plot(self: Axes, x: Any, y: Any, *args: Any, label: str, **kwargs: Any) -> Any:
        plotted[label] = list(zip(x, y, strict=True))
        return plot(self, x, y, *args, label=label, **kwargs)

    def record_axhline(self: Axes, y: float, **kwargs: Any) -> Any:
        plotted.setdefault("lines", []).append(y)
        return axhline(self, y, **kwargs)

    monkeypatch.setattr(Axes, "plot", record_plot)
    monkeypatch.setattr(Axes, "axhline", record_axhline)
    write_metrics_lines(tmp_path, LINES)
    path = plot_losses(tmp_path, uniform=6.0, unigram=4.2)
    assert path == tmp_path / "loss.png"
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert plotted == {
        "training": [(1, 5.0), (2, 4.0), (3, 3.0)],
        "validation": [(2, 4.5)],
        "lines": [6.0, 4.2],
    }
    assert {entry.name for entry in tmp_path.iterdir()} == {"metrics.jsonl", "loss.png"}


def test_a_plot_without_validation_and_baselines(tmp_path: Path) -> None:
    write_metrics_lines(tmp_path, LINES[:2])
    assert plot_losses(tmp_path, None, None).stat().st_size > 1000


def test_figures_are_closed(tmp_path: Path) -> None:
    write_metrics_lines(tmp_path, LINES)
    before = pyplot.get_fignums()
    plot_losses(tmp_path, None, None)
    assert pyplot.get_fignums() == before


def test_accuracies_are_plotted_in_percent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: dict[str, str] = {}
    set_xlabel = Axes.set_xlabel

    def record_labels(self: Axes, label: str) -> Any:
        titles[self.get_title()] = self.yaxis.get_major_formatter()(0.5)
        return set_xlabel(self, label)

    monkeypatch.setattr(Axes, "set_xlabel", record_labels)
    lines = [{"step": step, "pairs/accuracy": 0.4 + step / 10, "text/bits_per_byte": 2.0} for step in (1, 2)]
    plot_scores(tmp_path, lines, ["pairs/accuracy", "text/bits_per_byte"])
    assert titles["pairs: accuracy"].endswith("%")
    assert not titles["text: bits per byte"].endswith("%")
