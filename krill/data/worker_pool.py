"""A pool of processes that share work items on one machine and never outlive their parent.

Workers are spawned: a forked Rust thread pool would have no threads. A worker that is killed raises an error instead
of blocking forever; workers of a parent that is killed exit.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from itertools import islice
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.connection import wait as wait_for
from typing import Any, TypeVar

import psutil

from krill.errors import KrillError, get_first_line
from krill.resources import read_peak_rss
from krill.signals import EXIT_CODES

log = logging.getLogger("krill")
WorkItemT = TypeVar("WorkItemT")
WorkResultT = TypeVar("WorkResultT")
ProgressCallback = Callable[[int, int], None]
"""Called by the work function with the documents and bytes of text processed since the last call."""
WorkFunction = Callable[[Any, Iterable[WorkItemT], ProgressCallback], Iterator[tuple[WorkItemT, WorkResultT]]]
"""Called with the context that all items share, items and a `ProgressCallback`; yields each item with its result."""

PROGRESS_POLL_SECONDS = 0.5
"""Seconds between two polls of the shared counts."""
WORKER_GRACE_SECONDS = 3.0
"""Seconds that a worker has to exit after the pool is shut down."""


class WorkerPool:
    """`num_workers` processes with `num_threads` threads each; a single worker runs in this process."""

    def __init__(self, num_workers: int, num_threads: int, on_progress: ProgressCallback) -> None:
        self.num_workers, self.num_threads = num_workers, num_threads
        self._on_progress = on_progress
        self._peak_memory_by_pid: dict[int, int] = {}
        self._stopped_pids: set[int | None] = set()

    def map_unordered(
        self, work: WorkFunction[WorkItemT, WorkResultT], context: Any, items: Iterable[WorkItemT]
    ) -> Iterator[tuple[WorkItemT, WorkResultT]]:
        """Yields each item with its result as it completes, in any order.

        Raises the exceptions of `work`, KrillError if a worker was killed or memory ran out.
        """
        try:
            if self.num_workers == 1:
                yield from work(context, items, self._on_progress)
            else:
                yield from self._run_in_processes(work, context, iter(items))
        except MemoryError as error:
            raise KrillError(
                f"out of memory ({get_first_line(error)}); finished parts are saved. Run the same command to resume; "
                f"{self._suggest_less_memory()}"
            ) from error

    def _suggest_less_memory(self) -> str:
        if self.num_workers > 1:
            return f"fewer workers need less memory: data.workers={self.num_workers // 2}"
        return "split the largest documents of the text (one worker holds a whole document in memory)"

    def estimate_peak_memory(self) -> int:
        """Returns an upper bound in bytes: the sum of the peak resident sets of this process and all workers."""
        return read_peak_rss() + sum(self._peak_memory_by_pid.values())

    def _run_in_processes(
        self, work: WorkFunction[WorkItemT, WorkResultT], context: Any, items: Iterator[WorkItemT]
    ) -> Iterator[tuple[WorkItemT, WorkResultT]]:
        spawn = get_context("spawn")
        counts = spawn.Array("q", [0, 0, 0])
        pool = ProcessPoolExecutor(
            self.num_workers,
            spawn,
            initializer=_initialize_worker,
            initargs=(work, context, self.num_threads, counts),
        )
        try:
            pending: dict[Future[Any], WorkItemT] = {}
            while True:
                for item in islice(items, 2 * self.num_workers - len(pending)):
                    pending[pool.submit(_run_item, item)] = item
                if not pending:
                    return
                done, _ = wait(pending, PROGRESS_POLL_SECONDS, FIRST_COMPLETED)
                self._collect_progress(counts)
                self._warn_of_stopped_workers()
                for future in done:
                    pid, memory, result = future.result()
                    self._peak_memory_by_pid[pid] = memory
                    yield pending.pop(future), result
        except BrokenProcessPool as error:
            raise KrillError(
                "a worker process was killed, possibly out of memory; finished parts are saved. Run the same "
                f"command to resume; {self._suggest_less_memory()}"
            ) from error
        finally:
            counts.get_obj()[2] = 1  # without the lock, as in _exit_with_parent
            for child in active_children():
                with suppress(psutil.NoSuchProcess):
                    psutil.Process(child.pid).resume()  # a stopped worker would never exit
            pool.shutdown(cancel_futures=True)

    def _warn_of_stopped_workers(self) -> None:
        for child in active_children():
            with suppress(psutil.NoSuchProcess):
                if (
                    child.pid in self._stopped_pids
                    or psutil.Process(child.pid).status() != psutil.STATUS_STOPPED
                ):
                    continue
                self._stopped_pids.add(child.pid)
                log.warning(
                    "workers     process %d on %s is stopped; kill -CONT %d continues it, and after Ctrl-C the same "
                    "command resumes",
                    child.pid, socket.gethostname(), child.pid,
                )  # fmt: skip

    def _collect_progress(self, counts: Any) -> None:
        if not counts.get_lock().acquire(timeout=PROGRESS_POLL_SECONDS):
            return  # the worker that holds it is stopped, or was killed, which the pool reports
        try:
            documents, text_bytes, _ = counts
            counts[0] = counts[1] = 0
        finally:
            counts.get_lock().release()
        self._on_progress(documents, text_bytes)


_M_MMAP_THRESHOLD = -3
"""M_MMAP_THRESHOLD of glibc's malloc.h."""

_worker_state: tuple[Any, Any, Any]
"""In a worker: the work function, the shared context, the shared counts."""


class _PoolShutdown(Exception):
    """Raised in a worker after the pool was shut down."""


def _initialize_worker(work: Any, context: Any, num_threads: int, counts: Any) -> None:
    global _worker_state
    _worker_state = (work, context, counts)
    # Rust's thread pools read these variables on first use, which is later.
    os.environ["RAYON_NUM_THREADS"] = str(num_threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if num_threads > 1 else "false"
    for number in EXIT_CODES:
        signal.signal(number, signal.SIG_IGN)  # also sent to the parent, which decides
    threading.Thread(target=_exit_with_parent, args=[counts], daemon=True).start()
    _set_malloc_threshold()


def _set_malloc_threshold() -> None:
    """Makes glibc return the memory of large batches; by default it raises this threshold and keeps more and more."""
    with suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 2**23)


def _exit_with_parent(counts: Any) -> None:
    """Exits when the parent exits, or soon after the pool is shut down: an item may take minutes."""
    parent = parent_process()
    assert parent is not None
    while not wait_for([parent.sentinel], PROGRESS_POLL_SECONDS):
        if counts.get_obj()[2]:  # without the lock, which a worker that was killed may hold
            time.sleep(WORKER_GRACE_SECONDS)
            break
    os._exit(1)


def _run_item(item: Any) -> tuple[int, int, Any]:
    work, context, counts = _worker_state

    def on_progress(documents: int, text_bytes: int) -> None:
        with counts.get_lock():
            counts[0] += documents
            counts[1] += text_bytes
            if counts[2]:
                raise _PoolShutdown

    on_progress(0, 0)
    ((_, result),) = work(context, [item], on_progress)
    return os.getpid(), read_peak_rss(), result
