"""Saves the two plots of a store or of tokenizers side by side as PNG."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from krill.config.paths import relative_path
from krill.errors import KrillError
from krill.figure import drawn_figure

log = logging.getLogger("krill")


@contextmanager
def saved_figure(path: Path) -> Iterator[tuple[Any, Any]]:
    """Yields the left and the right plot (matplotlib axes) and saves the figure to `path`, a PNG file, at the end.

    Raises KrillError if the file cannot be written.
    """
    try:
        with drawn_figure(path, columns=2, width=12, height=5) as (left, right):
            yield left, right
            for axes in (left, right):
                axes.set_axisbelow(True)
    except OSError as error:
        raise KrillError(f"plot={path}: {error.strerror}; set plot= to another file") from error
    log.info("plot        %s", relative_path(path))
