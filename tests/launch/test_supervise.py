"""Child processes are polled, signaled and ended together."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from krill.launch.supervise import ProcessGroup

SLEEP = [sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(60)"]
IGNORE_SIGTERM = [
    sys.executable, "-c",
    "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('ready', flush=True)\ntime.sleep(60)",
]  # fmt: skip


def exit_with(code: int) -> list[str]:
    return [sys.executable, "-c", f"raise SystemExit({code})"]


def wait_until_ready(stem: Path) -> None:
    deadline = time.monotonic() + 60
    while "ready" not in stem.with_suffix(".out").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_exit_codes_and_outputs_of_all_processes_are_reported(tmp_path: Path) -> None:
    group = ProcessGroup()
    for number, code in enumerate((0, 3, 7)):
        group.start(number, exit_with(code), {})
    print_variable = [sys.executable, "-c", "import os, sys; print(os.environ['KEY'], file=sys.stderr)"]
    group.start(3, print_variable, {"KEY": "value"}, tmp_path / "3")
    codes: dict[int, int] = {}
    while group:
        codes |= dict(group.wait_any())
    assert codes == {0: 0, 1: 3, 2: 7, 3: 0}
    assert (tmp_path / "3.log").read_text() == "value\n"
    assert group.wait_any() == []


def test_signals_to_this_process_are_forwarded_while_in_the_context(tmp_path: Path) -> None:
    group = ProcessGroup()
    for number in range(2):
        group.start(number, SLEEP, {}, tmp_path / str(number))
        wait_until_ready(tmp_path / str(number))
    before = signal.getsignal(signal.SIGTERM)
    codes: dict[int, int] = {}
    with group.forward_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        while group:
            codes |= dict(group.wait_any())
    assert codes == {0: -signal.SIGTERM, 1: -signal.SIGTERM}
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_process_that_outlives_the_timeout_is_killed(tmp_path: Path) -> None:
    group = ProcessGroup()
    group.start(0, IGNORE_SIGTERM, {}, tmp_path / "0")
    wait_until_ready(tmp_path / "0")
    group.send_signal(signal.SIGTERM)
    start = time.monotonic()
    group.wait(0.2)
    assert 0.2 <= time.monotonic() - start < 30
    assert not group


def test_kill_does_not_wait(tmp_path: Path) -> None:
    group = ProcessGroup()
    group.start(0, IGNORE_SIGTERM, {}, tmp_path / "0")
    group.kill()
    assert group.wait_any() == [(0, -signal.SIGKILL)]


def test_processes_have_their_own_session(tmp_path: Path) -> None:
    """A terminal sends Ctrl-C to the process group of the parent, which forwards it."""
    group = ProcessGroup()
    print_session = [sys.executable, "-c", "import os; print(os.getsid(0) == os.getpid())"]
    group.start(0, print_session, {}, tmp_path / "0")
    assert group.wait_any() == [(0, 0)]
    assert (tmp_path / "0.out").read_text() == "True\n"


def test_a_signal_reaches_a_stopped_process(tmp_path: Path) -> None:
    group = ProcessGroup()
    group.start(0, SLEEP, {}, tmp_path / "0")
    wait_until_ready(tmp_path / "0")
    os.kill(group._running[0].pid, signal.SIGSTOP)
    group.send_signal(signal.SIGTERM)
    assert group.wait(30) == {0: -signal.SIGTERM}
