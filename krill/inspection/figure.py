"""Saves a figure of two plots side by side as PNG, atomically."""

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
"""Fonts in order of preference, for each character; fonts that are not installed are skipped."""


@contextmanager
def saved_figure(path: Path) -> Iterator[tuple[Any, Any]]:
    """Yields the left and the right plot (matplotlib axes) and saves the figure to `path`, a PNG file, at the end.

    Raises KrillError if the file cannot be written.
    """
    import warnings

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import font_manager, pyplot

    installed = {font.name for font in font_manager.fontManager.ttflist}
    fonts = {"font.family": [name for name in FONT_FAMILIES if name in installed]}
    with pyplot.rc_context(fonts), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # no font has them: boxes are drawn
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 5), dpi=120)
        try:
            yield left, right
            for axes in (left, right):
                axes.set_axisbelow(True)
            figure.tight_layout()
            _save_figure(figure, path)
        finally:
            pyplot.close(figure)
    log.info("plot        %s", path)


def _save_figure(figure: Any, path: Path) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(partial, format="png")
        partial.replace(path)
    except OSError as error:
        raise KrillError(f"plot={path}: {error.strerror}; set plot= to another file") from error
