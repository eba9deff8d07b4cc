"""The cores and the memory of this process, and Python's garbage collector."""

from __future__ import annotations

import gc
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# torch is imported inside the functions that need it: the launchers import this module and stay light.

OOM_MESSAGES = (
    "DefaultCPUAllocator: can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory",
    "Triton Error [CUDA]: out of memory",
)  # fmt: skip
"""Messages of RuntimeErrors that are raised instead of OutOfMemoryError: on the CPU, for cuBLAS's workspace, and for
what CUDA allocates itself, such as pinned memory and the code of kernels."""


def count_cpu_cores() -> int:
    """Returns the number of CPU cores that this process may use (SLURM and taskset restrict them)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


CGROUP_FILE, CGROUP_ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
"""The control group of this process, and the folder that has a folder for each group."""


def read_memory_limit() -> int:
    """Returns the memory in bytes that this process may use: of the machine, or of a container or SLURM job."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_read_cgroup_limits()])


def _read_cgroup_limits() -> Iterator[int]:
    """Yields the memory limits of the control group (version 2) of this process and of those above it."""
    try:
        group = CGROUP_FILE.read_text().partition("0::")[2].splitlines()[0]
    except (OSError, IndexError):  # not Linux, or version 1
        return
    folder = CGROUP_ROOT / group.lstrip("/")
    for path in (folder, *folder.parents):
        with suppress(
            OSError, ValueError
        ):  # the group has no limit ("max"), or is not visible in this container
            yield int((path / "memory.max").read_text())


def read_peak_rss() -> int:
    """Returns the peak resident memory of this process in bytes."""
    try:  # not getrusage: on Linux a child inherits its parent's peak
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


class CoreClock:
    """Measures the seconds since its start, and those in which this process waited for a core."""

    def __init__(self) -> None:
        self._start = self._read_now()

    def read(self) -> tuple[float, float]:
        """Returns both since the start, without the pauses."""
        (now, waited), (start, waited_before) = self._read_now(), self._start
        return now - start, waited - waited_before

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Stops the clock in this context."""
        seconds, waited = self.read()
        yield
        now, waited_now = self._read_now()
        self._start = now - seconds, waited_now - waited

    @staticmethod
    def _read_now() -> tuple[float, float]:
        return time.monotonic(), read_waited_seconds()


SCHEDULE_FILE = Path("/proc/self/schedstat")
"""Nanoseconds that the main thread ran and that it waited for a core, and its slices of time, on Linux."""


def read_waited_seconds() -> float:
    """Returns the seconds in which the main thread was ready to run and had no core; 0 if the system counts none."""
    try:
        return int(SCHEDULE_FILE.read_text(encoding="ascii").split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


@contextmanager
def paused_garbage_collection() -> Iterator[None]:
    """Keeps Python from visiting all objects again and again, which takes a sixth of the time of imports."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether the device is out of memory, or the machine, if the system reports it and does not kill."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in OOM_MESSAGES)


def release_heap() -> None:
    """Returns the freed blocks of glibc's heap to the system, which it keeps; does nothing with another C library."""
    import ctypes  # no help needs it

    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def release_memory() -> None:
    """Frees unreferenced memory: model, optimizer and trainer refer to each other in cycles.

    Compiled code is for the size that did not fit: without a reset, the next attempt would be compiled for any size,
    with slower kernels.
    """
    import torch

    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
