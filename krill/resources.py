"""The cores that this process may use, the memory that it has used, and Python's garbage collector."""

from __future__ import annotations

import gc
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def count_cpu_cores() -> int:
    """Returns the number of CPU cores that this process may use (SLURM and taskset restrict them)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_peak_rss() -> int:
    """Returns the peak resident memory of this process in bytes."""
    try:  # not getrusage: on Linux a child inherits its parent's peak
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


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
