"""Errors that the user can fix, reported as one message with an exit code and no traceback."""

from __future__ import annotations

import errno
from signal import Signals

DONE, FAILED, USAGE, SWEEP_FAILED, REQUEUE, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 75, 130, 143

DISK_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Errors of a write that exceeds the space of the disk, the quota, or the maximum size of a file."""


class KrillError(Exception):
    """The command failed; the message says why and what to do."""

    exit_code = FAILED


class UsageError(KrillError):
    """The configuration or the input is invalid; detected before any work is done."""

    exit_code = USAGE


class SignalInterrupt(BaseException):
    """A signal ended the command after its state was saved; the same command resumes it.

    Like KeyboardInterrupt it is not an Exception, so that code that catches any error and continues ignores it.
    """

    def __init__(self, message: str, exit_code: int, received: Signals | None = None):
        super().__init__(message)
        self.exit_code, self.signal = exit_code, received


def get_first_line(error: BaseException) -> str:
    """Returns the first line of the error's message, or its type if the message is empty."""
    return (str(error).strip() or type(error).__name__).split("\n")[0]  # a file name may contain U+2028
