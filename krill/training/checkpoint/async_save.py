"""A checkpoint that a thread writes while the training goes on (save_in_background=true).

What the next step changes, the weights and the state of the optimizer, is copied to host memory first; the rest of a
checkpoint is small and written at once. One checkpoint at a time: a save waits for the one before.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.utils._pytree import tree_leaves
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from krill.training import ranks

log = logging.getLogger("krill")


class AsyncCheckpointSaver(TrainerCallback):
    """The checkpoint that is being written, if there is one; looks after each step whether it is in its place.

    `saved` is then called with its step, by the main thread. A context around the training: it is not left while the
    thread writes, whatever ends the training.
    """

    def __init__(self, saved: Callable[[int], None]):
        self.on_checkpoint_saved = saved
        self.pending_writes: list[Callable[[], object]] = []
        self.executor = ThreadPoolExecutor(1)
        self.pending_step: int | None = None
        self.write_future: Future[None]

    def add_write(self, write: Callable[..., object], *arguments: Any) -> None:
        """Have the thread call `write` for the checkpoint that is started next."""
        self.pending_writes.append(partial(write, *arguments))

    def start(self, step: int, sealing: ExitStack) -> None:
        """Write what was added, then close `sealing`, which puts the checkpoint in its place; the first rank does."""
        self.pending_step, writes, self.pending_writes = step, self.pending_writes, []
        if ranks.is_rank0():
            self.write_future = self.executor.submit(_run_writes, writes, sealing)

    def finalize(self, wait: bool = True) -> None:
        """Call `saved` if the checkpoint is in its place; `wait`: when it is.

        Raises what the thread has raised, on all ranks: KrillError where there was no room.
        """
        step = self.pending_step
        if step is not None and ranks.on_rank0(lambda: self._is_written(wait)):
            self.pending_step = None
            self.on_checkpoint_saved(step)

    def _is_written(self, wait: bool) -> bool:
        if wait or self.write_future.done():
            self.write_future.result()
            return True
        return False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.finalize(wait=False)

    def __enter__(self) -> AsyncCheckpointSaver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        if self.pending_step is None or not ranks.is_rank0():
            return
        if not self.write_future.done():
            log.info("checkpoint  waiting until that of step %d is written", self.pending_step)
        failure = self.write_future.exception()
        if failure is not None and failure is not error:
            log.error("checkpoint  that of step %d is not saved: %s", self.pending_step, failure)
        elif failure is None and kind is not None and issubclass(kind, Exception):
            self.on_checkpoint_saved(self.pending_step)


def _run_writes(writes: list[Callable[[], object]], sealing: ExitStack) -> None:
    with sealing:
        while writes:
            writes.pop(0)()  # and what it has written is given back


def copy_to_host(state: Any) -> Any:
    """A copy of `state`, its tensors in the memory of the host; those that share a storage share one in the copy.

    So a file of the copy has the bytes of a file of `state`, but for the name of the device in one of torch.save.
    """
    storages: dict[int, UntypedStorage] = {}
    copies: dict[int, Any] = {}  # deepcopy takes what it finds here
    for tensor in tree_leaves(state):
        if type(tensor) is Tensor:
            source = tensor.untyped_storage()
            if source._cdata not in storages:
                storages[source._cdata] = UntypedStorage(source.nbytes()).copy_(source)
            whole = torch.empty(0, dtype=tensor.dtype)
            copies[id(tensor)] = whole.set_(
                storages[source._cdata], tensor.storage_offset(), tensor.size(), tensor.stride()
            )
    return copy.deepcopy(state, copies)
