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
from krill.signals import EXIT

Item = TypeVar("Item")
Result = TypeVar("Result")
Advance = Callable[[int, int], None]
"""Called by the work with documents and bytes of text that were done since the last call."""
Work = Callable[[Any, Iterable[Item], Advance], Iterator[tuple[Item, Result]]]
"""Called with what all items have in common, items and `Advance`; yields each item with its result."""

TICK = 0.5
"""Seconds between two looks at the counts."""
GRACE = 3.0
"""Seconds that a dismissed worker has to end by itself."""


def cores() -> int:
    """CPU cores that this process may use (what SLURM or taskset left of them)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Crew:
    """`workers` processes with `threads` threads each; one worker is this process itself."""

    def __init__(self, workers: int, threads: int, tick: Advance) -> None:
        self.workers, self.threads = workers, threads
        self._tick = tick
        self._memory: dict[int, int] = {}

    def do(
        self, work: Work[Item, Result], common: Any, items: Iterable[Item]
    ) -> Iterator[tuple[Item, Result]]:
        """Yield each item with its result as they are done, in any order.

        Raises what the work raises, KrillError if a worker was killed.
        """
        if self.workers == 1:
            yield from work(common, items, self._tick)
            return
        yield from self._spread(work, common, iter(items))

    def peak_memory(self) -> int:
        """Bytes: this process's largest resident set and those of all workers together, an upper bound."""
        return _resident_peak() + sum(self._memory.values())

    def _spread(
        self, work: Work[Item, Result], common: Any, items: Iterator[Item]
    ) -> Iterator[tuple[Item, Result]]:
        context = multiprocessing.get_context("spawn")
        counts = context.Array("q", [0, 0, 0])
        pool = ProcessPoolExecutor(
            self.workers, context, initializer=_enlist, initargs=(work, common, self.threads, counts)
        )
        try:
            waiting: dict[Future[Any], Item] = {}
            while True:
                for item in islice(items, 2 * self.workers - len(waiting)):
                    waiting[pool.submit(_serve, item)] = item
                if not waiting:
                    return
                done, _ = wait(waiting, TICK, FIRST_COMPLETED)
                self._take(counts)
                for future in done:
                    process, memory, result = future.result()
                    self._memory[process] = memory
                    yield waiting.pop(future), result
        except BrokenProcessPool as error:
            raise KrillError(
                "a worker was killed, perhaps for want of memory; what is done stays, the same command goes "
                f"on; with fewer workers it needs less memory: data.workers={max(1, self.workers // 2)}"
            ) from error
        finally:
            counts[2] = 1
            pool.shutdown(cancel_futures=True)

    def _take(self, counts: Any) -> None:
        with counts.get_lock():
            documents, text_bytes, _ = counts
            counts[0] = counts[1] = 0
        self._tick(documents, text_bytes)


_M_MMAP_THRESHOLD = -3
"""From glibc's malloc.h."""

_serves: tuple[Any, Any, Any]
"""In a worker: the work, what its items have in common, the shared counts."""


class _Dismissed(Exception):
    """The parent has stopped."""


def _enlist(work: Any, common: Any, threads: int, counts: Any) -> None:
    global _serves
    _serves = (work, common, counts)
    # Rust's thread pools read these when they are first used, which is later.
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    for number in EXIT:
        signal.signal(number, signal.SIG_IGN)  # sent to the whole group: the parent decides
    threading.Thread(target=_follow_parent, args=[counts], daemon=True).start()
    _give_memory_back()


def _give_memory_back() -> None:
    """Have glibc give back what a large batch used: left alone, it raises this threshold and keeps ever more."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 2**23)


def _follow_parent(counts: Any) -> None:
    """End this process with its parent, and soon after it was dismissed: an item may take minutes."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    while not wait_for([parent.sentinel], TICK):
        if counts.get_obj()[2]:  # without the lock, which another worker may hold
            time.sleep(GRACE)
            break
    os._exit(1)


def _serve(item: Any) -> tuple[int, int, Any]:
    work, common, counts = _serves

    def advance(documents: int, text_bytes: int) -> None:
        with counts.get_lock():
            counts[0] += documents
            counts[1] += text_bytes
            if counts[2]:
                raise _Dismissed

    advance(0, 0)
    ((_, result),) = work(common, [item], advance)
    return os.getpid(), _resident_peak(), result


def _resident_peak() -> int:
    try:  # not getrusage: on Linux a child begins with its parent's peak
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
