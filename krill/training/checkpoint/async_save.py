"""Asynchronous saving: a thread writes the checkpoint while training continues (save_in_background=true).

Weights and optimizer state, which the next step changes, are copied to host memory first; the rest of a checkpoint is
small and written immediately. One checkpoint at a time: a save waits for the previous one.
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
    """Writes one checkpoint at a time in a thread and checks after each step whether it is complete.

    `on_checkpoint_saved` is then called with its step, in the main thread. Also a context manager around the
    training: it does not exit while the thread writes, whatever ends the training.
    """

    def __init__(self, on_checkpoint_saved: Callable[[int], None]):
        self.on_checkpoint_saved = on_checkpoint_saved
        self.pending_writes: list[Callable[[], object]] = []
        self.executor = ThreadPoolExecutor(1)
        self.pending_step: int | None = None
        self.write_future: Future[None]

    def add_write(self, write: Callable[..., object], *arguments: Any) -> None:
        """Adds a call of `write` to the next checkpoint that is started."""
        self.pending_writes.append(partial(write, *arguments))

    def start(self, step: int, exit_stack: ExitStack) -> None:
        """Starts the added writes on rank 0, and then closes `exit_stack`, which commits the checkpoint."""
        self.pending_step, writes, self.pending_writes = step, self.pending_writes, []
        if ranks.is_rank0():
            self.write_future = self.executor.submit(_run_writes, writes, exit_stack)

    def finalize(self, blocking: bool = True) -> None:
        """Calls `on_checkpoint_saved` if the checkpoint is complete; `blocking`: waits until it is.

        Raises the thread's exception on all ranks: KrillError if the disk was full.
        """
        step = self.pending_step
        if step is not None and ranks.on_rank0(lambda: self._is_written(blocking)):
            self.pending_step = None
            self.on_checkpoint_saved(step)

    def _is_written(self, blocking: bool) -> bool:
        if blocking or self.write_future.done():
            self.write_future.result()
            return True
        return False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.finalize(blocking=False)

    def __enter__(self) -> AsyncCheckpointSaver:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, *_: object
    ) -> None:
        if self.pending_step is None or not ranks.is_rank0():
            return
        if not self.write_future.done():
            log.info("checkpoint  waiting for the checkpoint of step %d to be written", self.pending_step)
        failure = self.write_future.exception()
        if failure is not None and failure is not exc_value:
            log.error("checkpoint  not saved at step %d: %s", self.pending_step, failure)
        elif failure is None and exc_type is not None and issubclass(exc_type, Exception):
            self.on_checkpoint_saved(self.pending_step)


def _run_writes(writes: list[Callable[[], object]], exit_stack: ExitStack) -> None:
    with exit_stack:
        while writes:
            writes.pop(0)()  # popped, so that the copy it holds is freed once it is written


def copy_to_host(state: Any) -> Any:
    """Returns a copy of `state` with its tensors in host memory; tensors that share storage share it in the copy too.

    A file of the copy therefore has the same bytes as a file of `state`, except for torch.save's device names.
    """
    storages: dict[int, UntypedStorage] = {}
    copies: dict[int, Any] = {}  # deepcopy's memo
    for tensor in tree_leaves(state):
        if type(tensor) is Tensor:
            source = tensor.untyped_storage()
            if source._cdata not in storages:
                storages[source._cdata] = UntypedStorage(source.nbytes()).copy_(source)
            copies[id(tensor)] = torch.empty(0, dtype=tensor.dtype).set_(
                storages[source._cdata], tensor.storage_offset(), tensor.size(), tensor.stride()
            )
    return copy.deepcopy(state, copies)
