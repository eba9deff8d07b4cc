"""Handles SIGINT, SIGTERM, SIGUSR1 and SIGUSR2: interrupts a command so that the same command resumes it."""

from __future__ import annotations

import os
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
"""Seconds in which a repeated signal is ignored: schedulers and users repeat them, and the shutdown must not be
interrupted (a worker could wait for a lock forever)."""

_last_signal_time = float("-inf")


@contextmanager
def raise_on_signal() -> Iterator[None]:
    """Makes signals raise SignalInterrupt in this context: for work whose finished pieces are already on disk.

    For commands: the process exits after the outermost of these contexts, or once one has raised, and its exit code
    must not change (SLURM would report a finished job as failed), so later signals are ignored, except for Ctrl-C.
    Code that calls a command in its own process and continues has to set its handlers again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    global _last_signal_time
    _last_signal_time = float("-inf")
    later: dict[signal.Signals, Any] = {
        number: signal.signal(number, _raise_interrupt) for number in EXIT_CODES
    }
    if later[signal.SIGTERM] is not _raise_interrupt:
        later = dict.fromkeys(later, signal.SIG_IGN) | {signal.SIGINT: later[signal.SIGINT]}
    try:
        yield
    except SignalInterrupt:
        later = dict.fromkeys(later, signal.SIG_IGN) | {signal.SIGINT: _raise_interrupt}
        raise
    finally:
        if later[signal.SIGTERM] is signal.SIG_IGN:
            ignore_repeated_signals()  # while the handlers are replaced one by one
        for number, handler in later.items():
            signal.signal(number, handler)


def describe_exit(code: int) -> str:
    """Describes how a failed process ended, by its return code as in subprocess."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def ignore_repeated_signals() -> None:
    """Treats signals of the next REPEAT_WINDOW seconds as repetitions of the current one."""
    global _last_signal_time
    _last_signal_time = time.monotonic()


def _raise_interrupt(number: int, frame: FrameType | None) -> None:
    if time.monotonic() - _last_signal_time < REPEAT_WINDOW:
        return
    ignore_repeated_signals()
    received = signal.Signals(number)
    raise SignalInterrupt(
        f"interrupted by {received.name}; progress saved. Run the same command to resume.",
        EXIT_CODES[received],
        received,
    )


@contextmanager
def interruptible_import() -> Iterator[None]:
    """Raises an interrupt as itself: pybind11 makes it the cause of an ImportError, Python that of a RuntimeError."""
    try:
        yield
    except Exception as error:
        if isinstance(error.__cause__, SignalInterrupt | KeyboardInterrupt):
            raise error.__cause__ from None
        raise


@contextmanager
def report_abort(message: str, exit_code: int) -> Iterator[None]:
    """Within the context, abort(3) prints `message` on standard error and exits with `exit_code`.

    Native libraries abort, for example Rust when it cannot allocate memory; a Python handler would run too late.
    """
    import ctypes

    handler_type = ctypes.CFUNCTYPE(None, ctypes.c_int)

    def report(_: int) -> None:
        os.write(2, f"{message}\n".encode())
        os._exit(exit_code)

    handler = handler_type(report)
    set_handler = ctypes.CDLL(None).signal
    set_handler.argtypes, set_handler.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    previous = set_handler(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        set_handler(signal.SIGABRT, previous)


PR_SET_PDEATHSIG = 1
"""Option of prctl(2): the signal that this process gets when its parent dies."""


def die_with_parent(worker: int = 0) -> None:
    """Asks the kernel (Linux) to kill this process when its parent dies; also the `worker_init_fn` of the DataLoader.

    Otherwise, after a kill -9, ranks and workers of the killed run would still hold memory and files when the same
    command is run again: torch's workers check for their parent only every five seconds, ranks never.
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
