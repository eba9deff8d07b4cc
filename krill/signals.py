"""SIGINT, SIGTERM, USR1, USR2: stop in an orderly way, so that the same command goes on."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from krill import errors
from krill.errors import Stopped

EXIT = {
    signal.SIGINT: errors.INTERRUPTED,
    signal.SIGTERM: errors.REQUEUE,
    signal.SIGUSR1: errors.REQUEUE,
    signal.SIGUSR2: errors.REQUEUE,
}
PATIENCE = 10.0
"""Seconds in which a signal that is repeated is ignored: schedulers and people repeat them, and what winds up must
not be interrupted (a worker would wait for a lock for ever)."""

_stopped = float("-inf")


@contextmanager
def stopping() -> Iterator[None]:
    """A signal raises Stopped: for work of which every finished piece is on disk already."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    global _stopped
    _stopped = float("-inf")
    previous: dict[signal.Signals, Any] = {number: signal.signal(number, _stop) for number in EXIT}
    try:
        yield
    except Stopped:
        # The process ends, and its exit code must stay; only who waits at a keyboard may still lose patience.
        previous = dict.fromkeys(previous, signal.SIG_IGN) | {signal.SIGINT: _stop}
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def died_of(code: int) -> str:
    """How a process ended that did not end well, by the return code that subprocess gives."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def winding_up() -> None:
    """From now on, for a while, signals are repetitions of one that is obeyed already."""
    global _stopped
    _stopped = time.monotonic()


def _stop(number: int, frame: FrameType | None) -> None:
    if time.monotonic() - _stopped < PATIENCE:
        return
    winding_up()
    received = signal.Signals(number)
    raise Stopped(
        f"stopped by {received.name}; what is done stays, the same command goes on", EXIT[received], received
    )
