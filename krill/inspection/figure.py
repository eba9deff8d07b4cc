"""A picture of two plots side by side, written whole or not at all."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from krill.errors import KrillError

log = logging.getLogger("krill")

FONT_FAMILIES = (
    "DejaVu Sans",
    "Noto Sans CJK KR",
    "Noto Sans KR",
    "NanumGothic",
    "Malgun Gothic",
    "AppleGothic",
)
"""Tried in turn for each letter of a name; those that are not installed are left out."""


@contextmanager
def saved_figure(path: Path) -> Iterator[tuple[Any, Any]]:
    """The left and the right plot (matplotlib axes), to draw on; at the end they are in `path`, a PNG file.

    Raises KrillError where that cannot be written.
    """
    import warnings

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import font_manager, pyplot

    installed = {font.name for font in font_manager.fontManager.ttflist}
    fonts = {"font.family": [name for name in FONT_FAMILIES if name in installed]}
    with pyplot.rc_context(fonts), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # no such font here: boxes are drawn
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 5), dpi=120)
        try:
            yield left, right
            for axes in (left, right):
                axes.set_axisbelow(True)
            figure.tight_layout()
            _save_figure(figure, path)
        finally:
            pyplot.close(figure)
    log.info("plot: %s", path)


def _save_figure(figure: Any, path: Path) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(partial, format="png")
        partial.replace(path)
    except OSError as error:
        raise KrillError(f"plot={path}: {error.strerror}; name another file") from error
