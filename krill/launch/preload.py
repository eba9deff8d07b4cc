"""A fork server: it imports torch and transformers once, and every command that it runs starts with them imported.

    with PreloadedServer.start(["krill.training.run"]) as server:
        process = server.spawn([sys.executable, "-m", "krill.cli.job", folder, "0"], stdout=file)
        process.wait()

A command runs as a new process of the interpreter would: in its own session, with its own environment, working
directory, streams, signal handlers and exit code. `spawn` starts a real process instead where that cannot be
guaranteed: the command is not Python of this installation, the environment differs in a variable that is read during
the imports, the server could not import its modules without starting a thread, or the system is not Linux.

A command is killed when its handle is closed, all of them when the server ends, and the server ends with the process
that started it, however that process ends. A process with KRILL_PRELOADED in its environment, the address of a server
that runs, uses that one instead of starting its own. `krill.launch.preload_server` is the other side.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from krill.launch.supervise import Process

SERVER_MODULE = "krill.launch.preload_server"
PRELOADED_MODULES = {
    "train": (
        "krill.cli.train", "krill.data.cache", "krill.data.inputs", "krill.data.prepare", "krill.launch.identity",
        "krill.launch.slurm_env", "krill.runs.claim", "krill.runs.hub", "krill.runs.plots",
        "krill.training.preflight", "krill.training.run", "hydra.core.hydra_config",
        "matplotlib.backends.backend_agg", "matplotlib.pyplot", "pyarrow.parquet",
        "transformers.models.llama.modeling_llama",
    ),
    "preprocess": (
        "krill.cli.preprocess", "krill.data.cache", "krill.data.inputs", "krill.data.prepare",
        "krill.launch.identity", "krill.runs.claim", "hydra.core.hydra_config", "pyarrow.parquet",
    ),
    "tokenizer": (
        "krill.cli.tokenizer", "krill.data.cache", "krill.data.inputs", "krill.launch.identity", "krill.runs.claim",
        "krill.tokenizer.train", "hydra.core.hydra_config", "pyarrow.parquet",
    ),
    "infer": (
        "krill.cli.infer", "krill.inference.answerer", "krill.launch.answers",
        "transformers.models.llama.modeling_llama",
    ),
    "evaluate": (
        "krill.cli.evaluate", "krill.launch.evaluation_ranks", "transformers.models.llama.modeling_llama",
    ),
}  # fmt: skip
"""Command → modules that each of its points would import."""
RUNNING_SERVER_VARIABLE = "KRILL_PRELOADED"
RUNTIME_VARIABLES = frozenset({
    "CUDA_VISIBLE_DEVICES", "PATH", "PWD", "OLDPWD", "SHLVL", "_", "RANK", "LOCAL_RANK", "WORLD_SIZE",
    "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE", "PYTORCH_ALLOC_CONF",
})  # fmt: skip
RUNTIME_PREFIXES = ("HYDRA_", "KRILL_", "PYTEST_", "SLURM")
"""Variables in which a command may differ from the server: no module keeps them at import."""
MESSAGE_LENGTH = struct.Struct("<i")
TITLE_BYTES = 1024
"""Bytes that the server reserves in its own command line for those that `ps` shows of its children."""
RELAY_POLL_SECONDS = 0.01
MAX_FOLDER_LENGTH = 70
"""Characters: the address of a Unix socket has at most 107."""

StandardStream = int | IO[bytes] | IO[str]


class PreloadedProcess:
    """A command that the server runs, with the interface of subprocess.Popen."""

    def __init__(self, command: Sequence[str], pid: int, connection: socket.socket):
        self.args, self.pid = command, pid
        self.returncode: int | None = None
        self._connection = connection

    def poll(self) -> int | None:
        """Returns the exit code, or the negated number of the signal that killed it; None while it runs."""
        return self._receive(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Waits until it ends. Raises subprocess.TimeoutExpired after `timeout` seconds."""
        code = self._receive(timeout)
        if code is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return code

    def send_signal(self, sig: int) -> None:
        """Sends a signal, unless the process has ended."""
        if self.poll() is None:
            with contextlib.suppress(OSError):
                self._connection.sendall(bytes([sig]))

    def terminate(self) -> None:
        """Sends SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Sends SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _receive(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            self._connection.settimeout(timeout)
            try:
                answer = self._connection.recv(MESSAGE_LENGTH.size)
            except (BlockingIOError, TimeoutError):
                return None
            except ConnectionError:
                answer = b""
            # The server has ended, and the kernel ends its children with it.
            self.returncode = MESSAGE_LENGTH.unpack(answer)[0] if answer else -signal.SIGKILL
            self._connection.close()
        return self.returncode


class PreloadedServer:
    """The process that forks commands; without one, every command is a real process."""

    def __init__(self, process: subprocess.Popen[bytes] | None, address: Path | None):
        self.process, self.address = process, address

    @classmethod
    def get_running(cls) -> PreloadedServer:
        """Returns the server that KRILL_PRELOADED names; without one, every command is a real process."""
        address = os.environ.get(RUNNING_SERVER_VARIABLE)
        return cls(None, Path(address) if address else None)

    @classmethod
    def start(
        cls,
        modules: Sequence[str],
        environment: Mapping[str, str] | None = None,
        can_fork: bool | None = None,
    ) -> PreloadedServer:
        """Starts a server that imports `modules` in `environment`; returns before they are imported.

        `can_fork`: False to start real processes only, which is the default where forking is not safe.
        """
        if not (sys.platform == "linux" if can_fork is None else can_fork):
            return cls(None, None)
        environment = os.environ if environment is None else environment
        running = cls.get_running()
        # The server refuses commands whose import-time environment differs from its own, which this process has.
        if running.address and select_import_variables(environment) == select_import_variables(os.environ):
            return running
        temporary = tempfile.gettempdir()
        folder = tempfile.mkdtemp(
            prefix="krill-", dir=temporary if len(temporary) <= MAX_FOLDER_LENGTH else "/tmp"
        )
        address = Path(folder) / "socket"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(address))
            listener.listen(128)
            process = subprocess.Popen(
                [
                    sys.executable, "-m", SERVER_MODULE,
                    str(address), str(listener.fileno()), ",".join(modules), "-" * TITLE_BYTES,
                ],
                # Never None: os.environ lacks what readline sets in the environment of C.
                env=dict(environment),
                stdin=subprocess.PIPE,  # its end is the end of this process
                stdout=subprocess.DEVNULL,
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )  # fmt: skip
        return cls(process, address)

    def spawn(
        self,
        command: Sequence[str | os.PathLike[str]],
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        stdin: StandardStream = subprocess.DEVNULL,
        stdout: StandardStream | None = None,
        stderr: StandardStream | None = None,
    ) -> Process:
        """Runs `command` in its own session; the arguments are those of subprocess.Popen."""
        if self.address is not None:
            forked = spawn_forked(self.address, command, env, cwd, stdin, stdout, stderr)
            if forked is not None:
                return forked
        return subprocess.Popen(
            list(command), env=env, cwd=cwd, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True
        )

    def close(self) -> None:
        """Kills the server and every command that it runs; one that KRILL_PRELOADED names keeps running."""
        if self.process is not None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            self.process.wait()
            assert self.address is not None
            shutil.rmtree(self.address.parent, ignore_errors=True)
            self.process = self.address = None

    def __enter__(self) -> PreloadedServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def spawn_forked(
    address: Path,
    command: Sequence[str | os.PathLike[str]],
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    stdin: StandardStream = subprocess.DEVNULL,
    stdout: StandardStream | None = None,
    stderr: StandardStream | None = None,
) -> PreloadedProcess | None:
    """Asks the server at `address` to run `command`. Returns None where only a real process would do."""
    command_line = [os.fspath(argument) for argument in command]
    arguments = parse_python_command(command_line)
    if arguments is None:
        return None
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    request = {
        "command": command_line,
        "arguments": arguments,
        "environment": dict(os.environ if env is None else env),
        "folder": os.path.join(os.getcwd(), cwd or ""),
        "ignored": [
            int(number) for number in signal.valid_signals() if signal.getsignal(number) == signal.SIG_IGN
        ],
        "blocked": [int(number) for number in mask],
    }
    body = json.dumps(request).encode()
    with contextlib.ExitStack() as files:
        streams = [
            _get_descriptor(stream, number, files) for number, stream in enumerate((stdin, stdout, stderr))
        ]
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(address))
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", streams))
            connection.sendmsg([MESSAGE_LENGTH.pack(len(body))], [rights])
            connection.sendall(body)
            answer = connection.recv(MESSAGE_LENGTH.size)
        except OSError:
            answer = b""
        except BaseException:
            connection.close()
            raise
    pid = MESSAGE_LENGTH.unpack(answer)[0] if answer else 0
    if not pid:
        connection.close()
        return None
    return PreloadedProcess(command_line, pid, connection)


def select_import_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables that a module may have read at import: all but those known to be read later."""
    return {
        key: value
        for key, value in environment.items()
        if key not in RUNTIME_VARIABLES and not key.startswith(RUNTIME_PREFIXES)
    }


def parse_python_command(command: Sequence[str]) -> list[str] | None:
    """Returns the arguments of this Python that run `command`; None if it is another program.

    They are -m MODULE …, -c TEXT … or SCRIPT ….
    """
    if command[0] == sys.executable:
        arguments = list(command[1:])
    else:
        try:
            with open(command[0], "rb") as script:
                shebang = script.readline()
        except OSError:
            return None
        if not _is_this_python(os.fsdecode(shebang.removeprefix(b"#!").strip())):
            return None
        arguments = list(command)
    if len(arguments) > 1 and arguments[0] in ("-m", "-c"):
        return arguments
    return arguments if arguments and not arguments[0].startswith("-") else None


def _is_this_python(program: str) -> bool:
    """Returns whether `program` is this interpreter, under one of its names in the folder of this installation."""
    folder, name = os.path.split(sys.executable)
    return program == os.path.join(folder, os.path.basename(program)) and (
        os.path.basename(program) == name or os.path.realpath(program) == os.path.realpath(sys.executable)
    )


def relay_command(address: Path, command: Sequence[str]) -> int:
    """Runs `command` on the server in place of this process, with its streams and signals; returns its exit code."""
    process = spawn_forked(address, command, stdin=0)
    if process is None:
        os.execv(command[0], list(command))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda received, _: process.send_signal(received))
    while (code := process.poll()) is None:
        time.sleep(RELAY_POLL_SECONDS)
    if code < 0:  # end as it did
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def _get_descriptor(stream: StandardStream | None, number: int, files: contextlib.ExitStack) -> int:
    if stream is None:
        return number
    if stream == subprocess.DEVNULL:
        return files.enter_context(open(os.devnull, "r+b", buffering=0)).fileno()
    return stream if isinstance(stream, int) else stream.fileno()
