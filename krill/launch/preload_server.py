"""The process that krill.launch.preload starts: it imports modules, then forks a child for each connection.

    python -m krill.launch.preload_server ADDRESS LISTENER MODULES

A connection carries one command. The client sends the request with three streams, the server answers with the pid of
the child (0: refused) and later its exit code. Each further byte from the client is a signal for the child, and
closing the connection kills it.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from krill.launch.preload import MESSAGE_LENGTH, select_import_variables
from krill.launch.warm_up import warm_up
from krill.resources import paused_garbage_collection
from krill.signals import die_with_parent

IMPORT_ENVIRONMENT = {"JE_ARROW_MALLOC_CONF": "background_thread:false", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
"""Set during the imports, so that pyarrow starts no thread and looking for GPUs does not initialize CUDA."""
IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that the children handle; the server would leave them behind if it died of one."""


@dataclass(frozen=True)
class CommandRequest:
    """A command, and what the process that runs it inherits."""

    command: list[str]
    arguments: list[str]
    """Arguments of the interpreter."""
    environment: dict[str, str]
    folder: str
    ignored: list[int]
    blocked: list[int]
    streams: list[int]
    server: int


@dataclass
class RunningChild:
    """A command that runs, and the connection of the client that waits for it."""

    pid: int
    connection: socket.socket


def main(address: Path, listener: socket.socket, modules: list[str]) -> CommandRequest | None:
    """Serves until standard input ends and returns None; in a child, returns the command to run."""
    server = os.getpid()
    for number in IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    environment = dict(os.environ)
    try:
        import_single_threaded(modules)
        warm_up()
        if not is_safe_to_fork():
            return None
        gc.collect()
        gc.freeze()  # a collection in a child would copy all pages
        return ForkServer(listener, environment).serve()
    finally:
        if os.getpid() == server:
            shutil.rmtree(address.parent, ignore_errors=True)


def import_single_threaded(modules: list[str]) -> None:
    """Imports `modules` without starting a thread or initializing CUDA."""
    added = {key: value for key, value in IMPORT_ENVIRONMENT.items() if key not in os.environ}
    os.environ |= added
    with paused_garbage_collection():
        for module in modules:
            importlib.import_module(module)
    for key in added:
        del os.environ[key]


def is_safe_to_fork() -> bool:
    """Returns whether this process has a single thread and a child of it can use CUDA.

    Threads are counted after a fork: OpenBLAS starts its threads when it is loaded and ends them for a fork.
    """
    child = os.fork()
    if not child:
        torch = sys.modules.get("torch")
        os._exit(torch is not None and torch.cuda._is_in_bad_fork())
    poisoned = os.waitpid(child, 0)[1]
    until = time.monotonic() + 1  # a thread that has been joined may be listed for a moment
    while (threads := len(os.listdir("/proc/self/task"))) > 1 and time.monotonic() < until:
        time.sleep(0.001)
    return not poisoned and threads == 1


class ForkServer:
    """Accepts commands, forks a child for each and reports its exit code."""

    def __init__(self, listener: socket.socket, environment: Mapping[str, str]):
        self.listener = listener
        self.import_variables = select_import_variables(environment)
        self.children: dict[int, RunningChild] = {}
        self.selector = selectors.DefaultSelector()
        self.wakeup, self.woken = socket.socketpair()
        for end in (self.wakeup, self.woken):
            end.setblocking(False)

    def serve(self) -> CommandRequest | None:
        """Returns the command in each child, and None in the server when its standard input ends."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.wakeup.fileno(), warn_on_full_buffer=False)
        for source in (sys.stdin.fileno(), self.listener, self.woken):
            self.selector.register(source, selectors.EVENT_READ)
        while True:
            for key, _ in self.selector.select():
                if key.fileobj == sys.stdin.fileno():
                    self._kill_all()
                    return None
                if key.fileobj is self.listener:
                    request = self._accept(self.listener.accept()[0])
                    if request is not None:
                        return request
                elif key.fileobj is self.woken:
                    self.woken.recv(4096)
                elif key.data.pid in self.children:
                    self._forward_signals(key.data)
            self._reap()

    def _accept(self, connection: socket.socket) -> CommandRequest | None:
        """Forks a child for a request. Returns None in the server."""
        server = os.getpid()
        streams: list[int] = []
        try:
            connection.settimeout(60)
            head, streams, _, _ = socket.recv_fds(connection, MESSAGE_LENGTH.size, 3)
            fields = json.loads(_read(connection, MESSAGE_LENGTH.unpack(head)[0]))
            if select_import_variables(fields["environment"]) != self.import_variables or not os.path.isdir(
                fields["folder"]
            ):
                connection.sendall(MESSAGE_LENGTH.pack(0))
                connection.close()
                return None
            # What comes before the child has its handlers is delivered when it has them.
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            pid = os.fork()
            if pid:
                signal.pthread_sigmask(signal.SIG_SETMASK, [])
                self.children[pid] = child = RunningChild(pid, connection)
                self.selector.register(connection, selectors.EVENT_READ, child)
                connection.sendall(MESSAGE_LENGTH.pack(pid))
                return None
        except (OSError, ValueError, struct.error):
            connection.close()  # the client has gone
            return None
        finally:
            if os.getpid() == server:
                for stream in streams:
                    os.close(stream)
        self._close()
        connection.close()
        return CommandRequest(server=server, streams=streams, **fields)

    def _forward_signals(self, child: RunningChild) -> None:
        try:
            signals = child.connection.recv(64)
        except OSError:
            signals = b""
        for number in signals or [signal.SIGKILL]:
            os.kill(child.pid, number)
        if not signals:
            self.selector.unregister(child.connection)

    def _reap(self) -> None:
        while self.children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            child = self.children.pop(pid)
            with contextlib.suppress(OSError):
                child.connection.sendall(MESSAGE_LENGTH.pack(os.waitstatus_to_exitcode(status)))
            if child.connection in self.selector.get_map():
                self.selector.unregister(child.connection)
            child.connection.close()

    def _kill_all(self) -> None:
        for pid in self.children:
            os.kill(pid, signal.SIGKILL)
        for pid in self.children:
            os.waitpid(pid, 0)

    def _close(self) -> None:
        """Closes in a child what belongs to the server."""
        signal.set_wakeup_fd(-1)
        self.selector.close()
        for child in self.children.values():
            child.connection.close()
        for end in (self.listener, self.wakeup, self.woken):
            end.close()


def become_process(request: CommandRequest) -> None:
    """Makes this child what a process that the client had started itself would be."""
    die_with_parent()
    if os.getppid() != request.server:
        os.kill(os.getpid(), signal.SIGKILL)
    os.setsid()
    for number, stream in enumerate(request.streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request.folder)
    os.environ.clear()
    os.environ.update(request.environment)
    time.tzset()
    if "tempfile" in sys.modules:
        vars(sys.modules["tempfile"])["tempdir"] = None
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # Python's own generator seeds itself after a fork
    output: Any
    for output in (sys.stdout, sys.stderr):
        by_line = output is sys.stderr or output.isatty()
        output.reconfigure(line_buffering=by_line and not output.write_through)
    set_process_title(request.command)
    reset_signals(set(request.ignored), set(request.blocked))


def reset_signals(ignored: set[int], blocked: set[int]) -> None:
    """Sets the handlers of a Python that subprocess starts from a process that ignores and blocks these signals."""
    python = {signal.SIGPIPE, signal.SIGXFSZ}
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if number in python or number in ignored:
            handler: Any = signal.SIG_IGN
        else:
            handler = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        if signal.getsignal(number) != handler:
            signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def set_process_title(command: list[str]) -> None:
    """Shows `command` in `ps` and /proc/<pid>/cmdline, cut to the bytes that are reserved."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    text = b"\0".join(map(os.fsencode, command))[: end - start - 1]
    ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)


def run_python(arguments: list[str]) -> None:
    """Runs what `python ARGUMENTS` would run."""
    if arguments[0] == "-m":
        sys.path[0] = os.getcwd()
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments[0] == "-c":
        sys.path[0] = ""
        sys.argv = ["-c", *arguments[2:]]
        module = ModuleType("__main__")
        sys.modules["__main__"] = module
        exec(compile(arguments[1], "<string>", "exec"), vars(module))
    else:
        sys.path[0] = os.path.dirname(os.path.realpath(arguments[0]))
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


def run_and_exit(arguments: list[str]) -> None:
    """Runs `arguments`, calls what is registered with atexit, and exits without finalizing the interpreter.

    Finalizing takes 0.2 s once torch is imported. A command that does not end by sys.exit is left to the interpreter.
    """
    try:
        run_python(arguments)
        code = 0
    except SystemExit as stop:
        if stop.code is not None and not isinstance(stop.code, int):
            raise
        code = stop.code or 0
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        sys.exit(code)
    os._exit(code & 0xFF)


def _read(connection: socket.socket, length: int) -> bytes:
    body = b""
    while len(body) < length:
        received = connection.recv(length - len(body))
        if not received:
            raise OSError("closed")
        body += received
    return body


if __name__ == "__main__":
    address, descriptor, names = sys.argv[1:4]
    request = main(Path(address), socket.socket(fileno=int(descriptor)), names.split(","))
    if request is None:
        os._exit(0)  # skips the slow teardown of the imported modules
    become_process(request)
    run_and_exit(request.arguments)
