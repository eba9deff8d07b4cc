"""All ranks write one checkpoint: the first makes its folder, and seals it when every one has written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from krill.runs import checkpoints
from krill.training import ranks


@contextmanager
def aside(folder: Path, later: Callable[[ExitStack], None] | None = None) -> Iterator[Path]:
    """`checkpoints.aside`, the same hidden folder for all ranks; what fails on one fails on all.

    `later`: is given, on all ranks, what is to be closed when the first has written the rest.
    """
    with ExitStack() as sealing:
        partial = ranks.from_first(lambda: sealing.enter_context(checkpoints.aside(folder)))
        with ranks.agreed():
            yield partial
        if later is not None:
            later(sealing.pop_all())
        else:
            ranks.from_first(sealing.close)
