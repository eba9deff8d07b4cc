"""SIGINT, SIGTERM, USR1, USR2: stop in an orderly way, so that the same command goes on."""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from krill import errors
from krill.errors import SignalInterrupt

EXIT_CODES = {
    signal.SIGINT: errors.INTERRUPTED,
    signal.SIGTERM: errors.REQUEUE,
    signal.SIGUSR1: errors.REQUEUE,
    signal.SIGUSR2: errors.REQUEUE,
}
REPEAT_WINDOW = 10.0
"""Seconds in which a signal that is repeated is ignored: schedulers and people repeat them, and what winds up must
not be interrupted (a worker would wait for a lock for ever)."""

_last_signal_time = float("-inf")


@contextmanager
def raise_on_signal() -> Iterator[None]:
    """A signal raises Stopped: for work of which every finished piece is on disk already."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    global _last_signal_time
    _last_signal_time = float("-inf")
    previous: dict[signal.Signals, Any] = {
        number: signal.signal(number, _raise_interrupt) for number in EXIT_CODES
    }
    try:
        yield
    except SignalInterrupt:
        # The process ends, and its exit code must stay; only who waits at a keyboard may still lose patience.
        previous = dict.fromkeys(previous, signal.SIG_IGN) | {signal.SIGINT: _raise_interrupt}
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def describe_exit(code: int) -> str:
    """How a process ended that did not end well, by the return code that subprocess gives."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def ignore_repeated_signals() -> None:
    """From now on, for a while, signals are repetitions of one that is obeyed already."""
    global _last_signal_time
    _last_signal_time = time.monotonic()


def _raise_interrupt(number: int, frame: FrameType | None) -> None:
    if time.monotonic() - _last_signal_time < REPEAT_WINDOW:
        return
    ignore_repeated_signals()
    received = signal.Signals(number)
    raise SignalInterrupt(
        f"stopped by {received.name}; what is done stays, the same command goes on",
        EXIT_CODES[received],
        received,
    )


PR_SET_PDEATHSIG = 1
"""Option of prctl(2): the signal that this process gets when its parent dies."""


def die_with_parent(worker: int = 0) -> None:
    """Ask the kernel (Linux) to kill this process when its parent dies; the DataLoader calls it in each worker.

    After a kill -9 the same command, given again at once, would otherwise find the ranks and workers of the killed run,
    with their memory and open files: torch's workers look for their parent every five seconds only, ranks never.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
