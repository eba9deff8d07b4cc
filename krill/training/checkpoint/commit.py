"""All ranks write one checkpoint: the first makes its folder, and seals it when every one has written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from krill.runs import checkpoints
from krill.training import ranks


@contextmanager
def staged_checkpoint_on_all_ranks(
    folder: Path, later: Callable[[ExitStack], None] | None = None
) -> Iterator[Path]:
    """`checkpoints.aside`, the same hidden folder for all ranks; what fails on one fails on all.

    `later`: is given, on all ranks, what is to be closed when the first has written the rest.
    """
    with ExitStack() as sealing:
        partial = ranks.on_rank0(lambda: sealing.enter_context(checkpoints.staged_checkpoint(folder)))
        with ranks.raise_on_any_rank():
            yield partial
        if later is not None:
            later(sealing.pop_all())
        else:
            ranks.on_rank0(sealing.close)
