"""Communication between the ranks of a training run. A single process is rank 0 of 1 and does not communicate.

The launcher (torchrun, accelerate launch, srun, `krill.launch`) sets RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and
MASTER_PORT. Small host values (a decision, a folder, a sum) use a gloo group on the CPU, so that no call waits for
the device; gradients use torch's default group.
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
from torch.distributed import ProcessGroup, distributed_c10d

from krill.errors import FAILED, KrillError, SignalInterrupt, get_first_line
from krill.runs.slurm import get_node_name
from krill.training.compute.device import world_size_from_env

T = TypeVar("T")
CONNECT_TIMEOUT = timedelta(minutes=10)
"""Time for the ranks to connect to each other, after all of them have started."""
NCCL_TIMEOUT = timedelta(hours=1)
"""Time that a connected rank may be late to a collective on CUDA; torch's 10 minutes are less than a large sharded
checkpoint takes on a slow file system, which all ranks write together and one may finish last."""
CONTROL_TIMEOUT = timedelta(days=30)
"""Long, because other ranks may wait while rank 0 prepares data; a rank that dies is noticed at once anyway."""

_control_group: ProcessGroup | None = None


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Initializes the process groups for the duration of the context; does nothing for a single process.

    `device`: cuda or cpu. With cuda, each rank uses the device with the index LOCAL_RANK.
    """
    global _control_group
    if world_size_from_env() == 1 or _control_group is not None:
        yield
        return
    if not dist.is_initialized():
        _init_process_group(device)
    _control_group = _connect_control_group()
    if not is_rank0():
        logging.getLogger("krill").setLevel(logging.ERROR)  # rank 0 logs for all
    try:
        yield
        with suppress(RuntimeError):  # rank 0 has failed, and reports it
            dist.barrier(_control_group)
        dist.destroy_process_group()  # not after an error: other ranks may be inside a collective
    finally:
        _control_group = None


def _init_process_group(device: str) -> None:
    """Initializes the default group; with CUDA it connects at once, not in the first collective."""
    if device == "cuda":
        local_device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(local_device)
        with _explain_connection_error("NCCL_SOCKET_IFNAME"):
            dist.init_process_group("nccl", device_id=local_device, timeout=CONNECT_TIMEOUT)
        distributed_c10d._set_pg_timeout(NCCL_TIMEOUT)
        return
    with _explain_connection_error("GLOO_SOCKET_IFNAME"):
        dist.init_process_group("gloo", timeout=CONNECT_TIMEOUT)
        dist.barrier()
    distributed_c10d._set_pg_timeout(distributed_c10d.default_pg_timeout)


def _connect_control_group() -> ProcessGroup:
    with _explain_connection_error("GLOO_SOCKET_IFNAME"):
        group = dist.new_group(backend="gloo", timeout=CONNECT_TIMEOUT)
        dist.barrier(group)
    distributed_c10d._set_pg_timeout(CONTROL_TIMEOUT, group)
    return group


@contextmanager
def _explain_connection_error(variable: str) -> Iterator[None]:
    """Raises KrillError for a connection that fails; `variable`: the one that names its network interface."""
    try:
        yield
    except RuntimeError as error:
        last_error = str(error).partition("Last error:")[2].strip()  # of NCCL, below several lines
        reason = get_first_line(error) + (f", {last_error}" if last_error else "")
        raise KrillError(
            f"rank {os.environ.get('RANK', '0')} on {get_node_name()} could not connect to the other ranks within "
            f"{CONNECT_TIMEOUT.total_seconds() / 60:.0f} minutes ({reason}). If all of them run, a "
            "node has announced an address that the others cannot reach: name the network interface between the "
            f"nodes, as `ip address` shows it, in {variable} (export {variable}=eth0; with SLURM in "
            "hardware.slurm.setup)"
        ) from error


def get_world_size() -> int:
    """Returns the number of ranks in the process group; 1 outside of one."""
    return dist.get_world_size() if _control_group is not None else 1


def get_rank() -> int:
    """Returns the rank of this process; 0 outside of a process group."""
    return dist.get_rank() if _control_group is not None else 0


def is_rank0() -> bool:
    """Returns whether this rank writes files and logs for all."""
    return get_rank() == 0


def all_reduce_max(value: int) -> int:
    """Returns the maximum of `value` over ranks, on every rank."""
    if get_world_size() == 1:
        return value
    maximum = torch.tensor(value)
    dist.all_reduce(maximum, dist.ReduceOp.MAX, group=_control_group)
    return int(maximum)


def all_reduce_sum(values: Tensor) -> Tensor:
    """Returns the sum of a CPU tensor over ranks, on every rank."""
    if get_world_size() > 1:
        values = values.clone()
        dist.all_reduce(values, group=_control_group)
    return values


def all_gather_object(value: Any) -> list[Any]:
    """Returns the values of all ranks, ordered by rank, on every rank."""
    if get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * get_world_size()
    dist.all_gather_object(values, value, group=_control_group)
    return values


def on_rank0(work: Callable[[], T]) -> T:
    """Runs `work` on rank 0 only and returns its result on every rank; the others wait for it.

    If it raises, the other ranks raise a KrillError or SignalInterrupt with the same exit code and an empty message,
    since rank 0 reports the error.
    """
    if get_world_size() == 1:
        return work()
    if not is_rank0():
        result, is_interrupted, code = _broadcast_object(None)
        if code is not None:
            raise SignalInterrupt("", code) if is_interrupted else _build_silent_error(code)
        return result
    try:
        result = work()
    except BaseException as error:
        _broadcast_object((None, isinstance(error, SignalInterrupt), getattr(error, "exit_code", FAILED)))
        raise
    _broadcast_object((result, False, None))
    return result


@contextmanager
def broadcast_from_rank0() -> Iterator[Callable[[T], T]]:
    """Yields a function that sends one value to the ranks waiting in `receive_from_rank0`; for rank 0, once.

    If the context exits without it, the waiting ranks receive None.
    """
    is_sent = False

    def send(value: T) -> T:
        nonlocal is_sent
        is_sent = True
        return _broadcast_object(value) if get_world_size() > 1 else value

    try:
        yield send
    finally:
        if not is_sent and get_world_size() > 1:
            _broadcast_object(None)


def receive_from_rank0() -> Any:
    """Returns the value that rank 0 sends; None when it sent nothing and this rank may exit."""
    return _broadcast_object(None)


@contextmanager
def raise_on_any_rank() -> Iterator[None]:
    """Raises on every rank when one fails in this context: its own error there, a silent KrillError elsewhere."""
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
