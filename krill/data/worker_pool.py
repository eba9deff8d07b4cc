"""Processes that share numbered work on one machine: no work is lost when one dies, none outlives its parent.

Workers are started anew (spawn): a forked Rust thread pool would have no threads. A worker that is killed ends
the work with an error instead of a wait without end; a parent that is killed takes its workers along.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from itertools import islice
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any, TypeVar

from krill.errors import KrillError
from krill.signals import EXIT_CODES

WorkItemT = TypeVar("WorkItemT")
WorkResultT = TypeVar("WorkResultT")
ProgressCallback = Callable[[int, int], None]
"""Called by the work with documents and bytes of text that were done since the last call."""
WorkFunction = Callable[[Any, Iterable[WorkItemT], ProgressCallback], Iterator[tuple[WorkItemT, WorkResultT]]]
"""Called with what all items have in common, items and `ProgressCallback`; yields each item with its result."""

PROGRESS_POLL_SECONDS = 0.5
"""Seconds between two looks at the counts."""
WORKER_GRACE_SECONDS = 3.0
"""Seconds that a dismissed worker has to end by itself."""


def count_cpu_cores() -> int:
    """CPU cores that this process may use (what SLURM or taskset left of them)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class WorkerPool:
    """`workers` processes with `threads` threads each; one worker is this process itself."""

    def __init__(self, workers: int, threads: int, tick: ProgressCallback) -> None:
        self.num_workers, self.num_threads = workers, threads
        self._on_progress = tick
        self._peak_memory_by_pid: dict[int, int] = {}

    def map_unordered(
        self, work: WorkFunction[WorkItemT, WorkResultT], common: Any, items: Iterable[WorkItemT]
    ) -> Iterator[tuple[WorkItemT, WorkResultT]]:
        """Yield each item with its result as they are done, in any order.

        Raises what the work raises, KrillError if a worker was killed.
        """
        if self.num_workers == 1:
            yield from work(common, items, self._on_progress)
            return
        yield from self._run_in_processes(work, common, iter(items))

    def estimate_peak_memory(self) -> int:
        """Bytes: this process's largest resident set and those of all workers together, an upper bound."""
        return _read_peak_rss() + sum(self._peak_memory_by_pid.values())

    def _run_in_processes(
        self, work: WorkFunction[WorkItemT, WorkResultT], common: Any, items: Iterator[WorkItemT]
    ) -> Iterator[tuple[WorkItemT, WorkResultT]]:
        context = multiprocessing.get_context("spawn")
        counts = context.Array("q", [0, 0, 0])
        pool = ProcessPoolExecutor(
            self.num_workers,
            context,
            initializer=_initialize_worker,
            initargs=(work, common, self.num_threads, counts),
        )
        try:
            waiting: dict[Future[Any], WorkItemT] = {}
            while True:
                for item in islice(items, 2 * self.num_workers - len(waiting)):
                    waiting[pool.submit(_run_item, item)] = item
                if not waiting:
                    return
                done, _ = wait(waiting, PROGRESS_POLL_SECONDS, FIRST_COMPLETED)
                self._collect_progress(counts)
                for future in done:
                    process, memory, result = future.result()
                    self._peak_memory_by_pid[process] = memory
                    yield waiting.pop(future), result
        except BrokenProcessPool as error:
            raise KrillError(
                "a worker was killed, perhaps for want of memory; what is done stays, the same command goes "
                f"on; with fewer workers it needs less memory: data.workers={max(1, self.num_workers // 2)}"
            ) from error
        finally:
            counts[2] = 1
            pool.shutdown(cancel_futures=True)

    def _collect_progress(self, counts: Any) -> None:
        with counts.get_lock():
            documents, text_bytes, _ = counts
            counts[0] = counts[1] = 0
        self._on_progress(documents, text_bytes)


_M_MMAP_THRESHOLD = -3
"""From glibc's malloc.h."""

_worker_state: tuple[Any, Any, Any]
"""In a worker: the work, what its items have in common, the shared counts."""


class _PoolShutdown(Exception):
    """The parent has stopped."""


def _initialize_worker(work: Any, common: Any, threads: int, counts: Any) -> None:
    global _worker_state
    _worker_state = (work, common, counts)
    # Rust's thread pools read these when they are first used, which is later.
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    for number in EXIT_CODES:
        signal.signal(number, signal.SIG_IGN)  # sent to the whole group: the parent decides
    threading.Thread(target=_exit_with_parent, args=[counts], daemon=True).start()
    _set_malloc_threshold()


def _set_malloc_threshold() -> None:
    """Have glibc give back what a large batch used: left alone, it raises this threshold and keeps ever more."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 2**23)


def _exit_with_parent(counts: Any) -> None:
    """End this process with its parent, and soon after it was dismissed: an item may take minutes."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    while not wait_for([parent.sentinel], PROGRESS_POLL_SECONDS):
        if counts.get_obj()[2]:  # without the lock, which another worker may hold
            time.sleep(WORKER_GRACE_SECONDS)
            break
    os._exit(1)


def _run_item(item: Any) -> tuple[int, int, Any]:
    work, common, counts = _worker_state

    def advance(documents: int, text_bytes: int) -> None:
        with counts.get_lock():
            counts[0] += documents
            counts[1] += text_bytes
            if counts[2]:
                raise _PoolShutdown

    advance(0, 0)
    ((_, result),) = work(common, [item], advance)
    return os.getpid(), _read_peak_rss(), result


def _read_peak_rss() -> int:
    try:  # not getrusage: on Linux a child begins with its parent's peak
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
