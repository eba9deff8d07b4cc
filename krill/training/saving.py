"""All ranks write one checkpoint: the first makes its folder, and seals it when every one has written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from krill.runs import checkpoints
from krill.training import ranks


@contextmanager
def aside(folder: Path) -> Iterator[Path]:
    """`checkpoints.aside`, the same hidden folder for all ranks; what fails on one fails on all."""
    with ExitStack() as sealing:
        partial = ranks.from_first(lambda: sealing.enter_context(checkpoints.aside(folder)))
        with ranks.agreed():
            yield partial
        ranks.from_first(sealing.close)
