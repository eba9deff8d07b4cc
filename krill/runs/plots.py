"""Plots the losses of a run."""

from __future__ import annotations

from pathlib import Path

from krill.figure import drawn_figure
from krill.runs.json_lines import read_metrics


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
