"""Errors that a person can mend: one message, no traceback, an exit code."""

from __future__ import annotations

from signal import Signals

DONE, FAILED, USAGE, SWEEP_FAILED, REQUEUE, INTERRUPTED = 0, 1, 2, 3, 75, 130


class KrillError(Exception):
    """The task failed; the message says why and what to do."""

    exit_code = FAILED


class UsageError(KrillError):
    """The configuration or the input is wrong: found before any work was done."""

    exit_code = USAGE


class SignalInterrupt(BaseException):
    """A signal ended the run after its state was saved; the same command goes on.

    No Exception, as KeyboardInterrupt is none: whoever catches any error and goes on must not go on.
    """

    def __init__(self, message: str, exit_code: int, received: Signals | None = None):
        super().__init__(message)
        self.exit_code, self.signal = exit_code, received
