"""Plots the losses of a run, and the scores of its model in training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from krill.figure import drawn_figure
from krill.runs.json_lines import read_metrics
from krill.runs.scores import is_accuracy


def plot_losses(folder: Path, uniform: float | None, unigram: float | None) -> Path:
    """Plots training and validation loss over steps to `folder`/loss.png, with the baselines as lines.

    Losses are in nats per token. Returns the path of the plot.
    """
    lines = read_metrics(folder)
    path = folder / "loss.png"
    with drawn_figure(path, columns=1, width=8, height=5) as [axes]:
        for key, label, style in (("loss", "training", "-"), ("eval_loss", "validation", "o-")):
            points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), style, label=label, markersize=4)
        for value, label in ((uniform, "uniform guess"), (unigram, "token frequencies alone")):
            if value is not None:
                axes.axhline(value, linestyle="--", linewidth=1, color="gray")
                axes.annotate(
                    label, (1, value), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8
                )
        axes.locator_params(axis="x", integer=True)
        axes.set_xlabel("step")
        axes.set_ylabel("loss, nats per token")
        axes.grid(alpha=0.3)
        axes.legend()
    return path


def plot_scores(folder: Path, lines: Sequence[dict[str, Any]], metrics: Sequence[str]) -> Path:
    """Plots each of `metrics` over the steps of `lines` to `folder`/scores.png, side by side; returns the path.

    Accuracies are in percent, as in the tables.
    """
    from matplotlib.ticker import PercentFormatter

    path = folder / "scores.png"
    with drawn_figure(path, columns=len(metrics), width=5 * len(metrics), height=4) as plots:
        for axes, metric in zip(plots, metrics, strict=True):
            points = [(line["step"], line[metric]) for line in lines if metric in line]
            axes.plot(*zip(*points, strict=True), "o-", markersize=4)
            if is_accuracy(metric.split("/")[1]):
                axes.yaxis.set_major_formatter(PercentFormatter(1))
            axes.locator_params(axis="x", integer=True)
            axes.set_title(metric.replace("_", " ").replace("/", ": "))
            axes.set_xlabel("step")
            axes.grid(alpha=0.3)
    return path
