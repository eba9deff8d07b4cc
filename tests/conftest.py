"""For every test: no network, one thread a process (tests run side by side on few cores), a logger as it was."""

import logging
import os
import signal
from collections.abc import Iterator

import pytest

from krill.signals import EXIT_CODES

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if (
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN
):  # in the background of a shell; processes of tests inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _krill_logger() -> Iterator[None]:
    """A command run in this process listens to krill's logger: its handler must not outlive the test."""
    log = logging.getLogger("krill")
    handlers, propagate, level = log.handlers[:], log.propagate, log.level
    yield
    log.handlers[:], log.propagate = handlers, propagate
    log.setLevel(level)


@pytest.fixture(autouse=True)
def _signal_handlers() -> Iterator[None]:
    """A command that was stopped in this process ignores signals from then on; so would processes of other tests."""
    handlers = {number: signal.getsignal(number) for number in EXIT_CODES}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
