"""Draws the attention weights of one head as a picture, with the tokens at both axes."""

from __future__ import annotations

from pathlib import Path

from krill.errors import KrillError
from krill.figure import drawn_figure
from krill.inference.attention_maps import AttentionMap
from krill.inspection.formatting import truncate_to_width
from krill.inspection.token_display import TokenRenderer

MAX_LABELS = 80
"""Tokens that are named at an axis; of a longer text, every second, third, … one."""
MAX_LABEL_WIDTH = 14


def plot_attention(attention: AttentionMap, renderer: TokenRenderer, path: Path) -> None:
    """Saves the picture as PNG: rows attend to columns. Raises KrillError if the file cannot be written."""
    from matplotlib.colors import PowerNorm

    count = len(attention.ids)
    step = -(-count // MAX_LABELS)
    positions = range(0, count, step)
    labels = [
        truncate_to_width(renderer.label_token(attention.ids[one]), MAX_LABEL_WIDTH) for one in positions
    ]
    side = 2.5 + 0.2 * max(8, len(labels))
    try:
        with drawn_figure(path, columns=1, width=side + 1, height=side) as [axes]:
            scale = PowerNorm(0.5, vmin=0, vmax=1)  # shows the small weights of a long text, too
            image = axes.imshow(attention.weights_NN.numpy(), cmap="Blues", norm=scale)
            axes.figure.colorbar(image, ax=axes, fraction=0.046, label="attention weight")
            axes.set_title(f"layer {attention.layer}, head {attention.head}")
            axes.set_xlabel("attended token")
            axes.set_ylabel("token")
            axes.set_xticks(positions, labels, rotation=90, fontsize=7)
            axes.set_yticks(positions, labels, fontsize=7)
            for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
                label.set_parse_math(False)  # a dollar sign is text
    except OSError as error:
        raise KrillError(f"{path}: {error.strerror}; set plot= or output= to another path") from error
