"""Child processes: started in sessions of their own, polled, signaled and ended together."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any, Protocol

from krill.signals import EXIT_CODES

POLL_SECONDS = 0.05


class Process(Protocol):
    """The part of subprocess.Popen that supervision needs; PreloadedProcess has it as well."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int) -> None: ...
    def kill(self) -> None: ...


class SpawnFunction(Protocol):
    """Starts a command in a session of its own, with an empty standard input; without a stream, it inherits ours."""

    def __call__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        *,
        stdout: IO[bytes] | None = None,
        stderr: IO[bytes] | None = None,
    ) -> Process: ...


def spawn_process(
    command: Sequence[str],
    env: Mapping[str, str],
    *,
    stdout: IO[bytes] | None = None,
    stderr: IO[bytes] | None = None,
) -> subprocess.Popen[bytes]:
    """Starts a command as a new process. The terminal's Ctrl-C reaches the parent alone, which forwards it."""
    return subprocess.Popen(
        command, env=env, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True
    )


class ProcessGroup:
    """The child processes that are running, each with a number."""

    def __init__(self, spawn: SpawnFunction = spawn_process):
        self._spawn = spawn
        self._running: dict[int, Process] = {}

    def __len__(self) -> int:
        return len(self._running)

    @property
    def numbers(self) -> list[int]:
        """The numbers of the processes that are running."""
        return list(self._running)

    def start(
        self,
        number: int,
        command: Sequence[str],
        environment: Mapping[str, str],
        output_stem: Path | None = None,
    ) -> None:
        """Starts process `number` with `environment` added to ours.

        `output_stem`: standard output is appended to <stem>.out and standard error to <stem>.log; None: to ours.
        """
        with ExitStack() as files:
            streams: dict[str, IO[bytes]] = {}
            if output_stem is not None:
                for stream, suffix in (("stdout", ".out"), ("stderr", ".log")):
                    streams[stream] = files.enter_context(open(output_stem.with_suffix(suffix), "ab"))
            self._running[number] = self._spawn(command, os.environ | environment, **streams)

    def wait_any(self, timeout: float | None = None) -> list[tuple[int, int]]:
        """Waits until at least one process has ended. Returns (number, return code) of each, in order of start.

        Returns an empty list if there is no process, or after `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            codes = [(number, process.poll()) for number, process in self._running.items()]
            ended = [(number, code) for number, code in codes if code is not None]
            if ended or not self._running or (deadline is not None and time.monotonic() >= deadline):
                for number, _ in ended:
                    del self._running[number]
                return ended
            time.sleep(POLL_SECONDS)

    def send_signal(self, number: int) -> None:
        """Sends a signal to all of them; one that was stopped (SIGSTOP) continues, or it would never handle it."""
        for process in self._running.values():
            process.send_signal(number)
            process.send_signal(signal.SIGCONT)

    def wait(self, timeout: float | None = None) -> dict[int, int]:
        """Waits for all of them; those that run longer than `timeout` seconds are killed.

        Returns the return codes of those that were not.
        """
        codes: dict[int, int] = {}
        deadline = None if timeout is None else time.monotonic() + timeout
        for number, process in self._running.items():
            try:
                codes[number] = process.wait(
                    None if deadline is None else max(0.0, deadline - time.monotonic())
                )
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()
        return codes

    def kill(self) -> None:
        """Kills all of them, without waiting."""
        for process in self._running.values():
            process.kill()

    @contextmanager
    def forward_signals(self) -> Iterator[None]:
        """Forwards the signals of krill.signals to all of them, instead of this process, within the context."""

        def forward(number: int, frame: FrameType | None) -> None:
            self.send_signal(number)

        previous: dict[signal.Signals, Any] = {
            number: signal.signal(number, forward) for number in EXIT_CODES
        }
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
