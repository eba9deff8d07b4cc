"""The processes that train one model together, and what they tell each other. A process alone is rank 0 of 1.

Whoever starts them (torchrun, accelerate launch, srun, `krill.launch`) says so in the environment: RANK, LOCAL_RANK,
WORLD_SIZE, MASTER_ADDR, MASTER_PORT. What travels here are small things of the host, a decision, a folder, a sum:
by gloo on the CPU, so that none of it waits for a device. Gradients have torch's default group.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from krill.errors import FAILED, KrillError, SignalInterrupt
from krill.training.compute.device import world_size_from_env

T = TypeVar("T")
CONTROL_TIMEOUT = timedelta(days=30)
"""The others may wait for the first while it prepares; that one of them died is noticed at once in any case."""

_control_group: ProcessGroup | None = None


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """A context in which the announced ranks know each other; nothing where this process is alone.

    `device`: cuda or cpu; of several CUDA devices a rank takes the one of its LOCAL_RANK.
    """
    global _control_group
    if world_size_from_env() == 1 or _control_group is not None:
        yield
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
    _control_group = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT)
    if not is_rank0():
        logging.getLogger("krill").setLevel(logging.ERROR)  # the first one speaks
    try:
        yield
        with suppress(RuntimeError):  # the first one has failed meanwhile, and says so itself
            dist.barrier(_control_group)
        dist.destroy_process_group()  # not after an error: the others may be within a collective
    finally:
        _control_group = None


def get_world_size() -> int:
    """Ranks that have joined."""
    return dist.get_world_size() if _control_group is not None else 1


def get_rank() -> int:
    """The number of this one."""
    return dist.get_rank() if _control_group is not None else 0


def is_rank0() -> bool:
    """Whether this is the rank that writes and speaks for all."""
    return get_rank() == 0


def all_reduce_max(value: int) -> int:
    """The largest of the ranks' values, on each."""
    if get_world_size() == 1:
        return value
    found = torch.tensor(value)
    dist.all_reduce(found, dist.ReduceOp.MAX, group=_control_group)
    return int(found)


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum over ranks of a tensor on the CPU, on each."""
    if get_world_size() > 1:
        values = values.clone()
        dist.all_reduce(values, group=_control_group)
    return values


def all_gather_object(value: Any) -> list[Any]:
    """The values of all ranks in their order, on each."""
    if get_world_size() == 1:
        return [value]
    found: list[Any] = [None] * get_world_size()
    dist.all_gather_object(found, value, group=_control_group)
    return found


def on_rank0(work: Callable[[], T]) -> T:
    """What `work` returns on the first rank, on each; the others wait for it.

    What it raises there ends the others as well: by a KrillError or Stopped of the same exit code that says nothing,
    for the first one has said it.
    """
    if get_world_size() == 1:
        return work()
    if not is_rank0():
        found, stopped, code = _broadcast_object(None)
        if code is not None:
            raise SignalInterrupt("", code) if stopped else _build_silent_error(code)
        return found
    try:
        found = work()
    except BaseException as error:
        _broadcast_object((None, isinstance(error, SignalInterrupt), getattr(error, "exit_code", FAILED)))
        raise
    _broadcast_object((found, False, None))
    return found


@contextmanager
def broadcast_from_rank0() -> Iterator[Callable[[T], T]]:
    """For the first rank while the others are in `receive_from_rank0`: a function that tells them what they wait for, once.

    Where the context is left without, they are sent home.
    """
    told = False

    def tell(value: T) -> T:
        nonlocal told
        told = True
        return _broadcast_object(value) if get_world_size() > 1 else value

    try:
        yield tell
    finally:
        if not told and get_world_size() > 1:
            _broadcast_object(None)


def receive_from_rank0() -> Any:
    """What the first rank tells the others; None: nothing, they may go home."""
    return _broadcast_object(None)


@contextmanager
def raise_on_any_rank() -> Iterator[None]:
    """What fails on one rank ends this context on all: there by its error, elsewhere by one that says nothing."""
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    codes = all_gather_object(failure and getattr(failure, "exit_code", FAILED))
    if failure is not None:
        raise failure
    if any(code is not None for code in codes):
        raise _build_silent_error(next(code for code in codes if code is not None))


def _build_silent_error(code: int) -> KrillError:
    error = KrillError("")
    error.exit_code = code
    return error


def _broadcast_object(value: Any) -> Any:
    box = [value]
    dist.broadcast_object_list(box, 0, group=_control_group)
    return box[0]
