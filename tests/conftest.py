"""For every test: no network, one thread per process, since tests run in parallel; what a test changes is restored.

At the end of a session the time of each folder is printed, below pytest's slowest tests.
"""

import gc
import logging
import os
import signal
from collections.abc import Iterator

import pytest
from _pytest.terminal import TerminalReporter
from xdist.remote import Producer
from xdist.scheduler import WorkStealingScheduling

from krill.signals import EXIT_CODES

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("KRILL_CALIBRATION", "off")  # what was measured on this machine would change the plans
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # started in the background of a shell
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> WorkStealingScheduling:
    """Give each worker neighbouring tests, so that what a module or a folder shares is made by one of them."""
    return WorkStealingScheduling(config, log)


def pytest_collection_finish() -> None:
    """Leave what the imports have made out of every later collection: each takes a fifth of a small training."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _no_fsync() -> Iterator[None]:
    """Leave what this process writes in the page cache: a small training syncs 57 files, which takes 0.2 s."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """Restore the environment: a compilation leaves variables, and a command that has them cannot be forked."""
    before = dict(os.environ)
    yield
    for key in os.environ.keys() - before.keys() - {"PYTEST_CURRENT_TEST"}:
        del os.environ[key]
    os.environ.update(before)


@pytest.fixture(autouse=True)
def _krill_logger() -> Iterator[None]:
    """Remove the handlers that a command run in this process adds to krill's logger."""
    log = logging.getLogger("krill")
    handlers, propagate, level = log.handlers[:], log.propagate, log.level
    yield
    log.handlers[:], log.propagate = handlers, propagate
    log.setLevel(level)


@pytest.fixture(autouse=True)
def _signal_handlers() -> Iterator[None]:
    """Restore signal handlers: a command that was run in this process ignores signals afterwards."""
    handlers = {number: signal.getsignal(number) for number in EXIT_CODES}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Print the time of the tests of each folder, the slowest folder first."""
    seconds: dict[str, float] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                folder = report.nodeid.partition("::")[0].rpartition("/")[0]
                seconds[folder] = seconds.get(folder, 0.0) + report.duration
    terminalreporter.section("time per folder")
    for folder, total in sorted(seconds.items(), key=lambda item: -item[1]):
        terminalreporter.write_line(f"{total:8.1f} s  {folder}")
