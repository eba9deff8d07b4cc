"""SIGTERM, USR1, USR2: stop in an orderly way, so that the same command goes on. SIGINT interrupts, as always."""

from __future__ import annotations

import signal
import threading
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


@contextmanager
def stopping() -> Iterator[None]:
    """A signal raises Stopped: for work of which every finished piece is on disk already.

    Behind it further ones are ignored: schedulers repeat them, and the exit code must stay what it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [number for number in EXIT if number != signal.SIGINT]
    previous: dict[signal.Signals, Any] = {number: signal.signal(number, _stop) for number in numbers}
    try:
        yield
    except Stopped:
        previous = dict.fromkeys(numbers, signal.SIG_IGN)
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    received = signal.Signals(number)
    raise Stopped(f"stopped by {received.name}; what is done stays, the same command goes on", EXIT[received])
