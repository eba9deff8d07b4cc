"""Saves one checkpoint from all ranks: rank 0 creates the folder, and commits it when every rank has written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from krill.runs import checkpoints
from krill.training import ranks


@contextmanager
def staged_checkpoint_on_all_ranks(
    folder: Path, defer_commit: Callable[[ExitStack], None] | None = None
) -> Iterator[Path]:
    """Enters `checkpoints.staged_checkpoint` on rank 0 and yields its hidden folder on all ranks.

    An error on one rank fails all. With `defer_commit` the checkpoint is not committed at the end of the context:
    `defer_commit` is called on all ranks with the exit stack to close once rank 0 has written the rest.
    """
    with ExitStack() as exit_stack:
        partial = ranks.on_rank0(lambda: exit_stack.enter_context(checkpoints.staged_checkpoint(folder)))
        with ranks.raise_on_any_rank():
            yield partial
        if defer_commit is not None:
            defer_commit(exit_stack.pop_all())
        else:
            ranks.on_rank0(exit_stack.close)
