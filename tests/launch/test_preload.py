"""A command that is forked from a preloaded server behaves as a process of its own does."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from krill.launch import preload_server
from krill.launch.preload import PRELOADED_MODULES, PreloadedProcess, PreloadedServer, parse_python_command
from krill.launch.supervise import Process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every command is a real process")

WORK = """
import sys, torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
torch.manual_seed(int(sys.argv[1]))
layer = nn.Linear(256, 256)
layer(torch.randn(64, 256)).square().sum().backward()
tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
assert [encoded.ids for encoded in tokenizer.encode_batch(["a b"] * 64)] == [[0, 1]] * 64
print(layer.weight.grad.sum().item())
"""
FACTS = """
import json, os, signal, sys, threading
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "argv": sys.argv, "path": sys.path, "cwd": os.getcwd(), "main": sys.modules["__main__"].__name__,
    "environment": dict(os.environ), "fds": sorted(os.listdir("/proc/self/fd")),
    "handlers": {int(n): str(getattr(signal.getsignal(n), "__name__", signal.getsignal(n)))
                 for n in signal.valid_signals()},
    "signals": [status[key].strip() for key in ("SigBlk", "SigIgn", "SigCgt")], "umask": status["Umask"].strip(),
    "leads": os.getsid(0) == os.getpid() == os.getpgid(0), "stdin": sys.stdin.read(),
    "buffered": [sys.stdout.line_buffering, sys.stderr.line_buffering], "threads": threading.active_count(),
    "encodings": [sys.stdout.encoding, sys.stdout.errors, sys.stderr.errors], "flags": str(sys.flags),
    "cmdline": open("/proc/self/cmdline").read().rstrip(chr(0)),
}))
"""


@pytest.fixture(scope="module")
def server() -> Iterator[PreloadedServer]:
    with PreloadedServer.start(["numpy", "pyarrow", "tokenizers", "torch"]) as server:
        yield server


@pytest.fixture(scope="module")
def light() -> Iterator[PreloadedServer]:
    """For what does not depend on the modules."""
    with PreloadedServer.start(["json"]) as server:
        yield server


def python(text: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", text, *map(str, arguments)]


def output(server: PreloadedServer, file: Path, command: list[str], **kwargs: Any) -> str:
    """What a command prints that ends well."""
    with open(file, "wb") as stream:
        process = server.spawn(command, stdout=stream, **kwargs)
    assert isinstance(process, PreloadedProcess) == (server.address is not None)
    assert process.wait(60) == 0
    return file.read_text()


def wait_until(condition: Callable[[], object], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_hundred_forks_train_and_encode(server: PreloadedServer, tmp_path: Path) -> None:
    """None hangs, though each starts threads of autograd and tokenizers; each computes what a process would."""
    running: list[tuple[int, Process]] = []
    for index in range(200):
        with open(tmp_path / str(index), "wb") as stream:
            process = server.spawn(python(WORK, index % 5), stdout=stream)
        assert isinstance(process, PreloadedProcess)
        running.append((index, process))
        if len(running) == 4:
            oldest, process = running.pop(0)
            assert process.wait(60) == 0, oldest
    assert [process.wait(60) for _, process in running] == [0] * len(running)
    results = [(tmp_path / str(index)).read_text() for index in range(200)]
    fresh = output(PreloadedServer(None, None), tmp_path / "fresh", python(WORK, 3))
    assert {results[index] for index in range(3, 200, 5)} == {fresh}
    assert len(set(results)) == 5


@pytest.mark.slow
@pytest.mark.parametrize("is_light", [False, True])
def test_what_a_point_imports_starts_no_thread(is_light: bool, tmp_path: Path) -> None:
    """A server with a thread would not fork; one for several commands shares the seconds of importing torch."""
    commands = {
        command for command in PRELOADED_MODULES if (command in ("preprocess", "tokenizer")) == is_light
    }
    heavy = {"tokenizers"} if is_light else {"torch", "transformers"}
    modules = [module for command in commands for module in PRELOADED_MODULES[command]]
    with PreloadedServer.start(modules) as server:
        loaded = output(server, tmp_path / "out", python("import sys; print(*sys.modules)"))
        assert {*heavy, *modules} <= set(loaded.split())


def test_a_child_is_as_a_new_process_would_be(light: PreloadedServer, tmp_path: Path) -> None:
    (tmp_path / "facts.py").write_text(FACTS)
    (tmp_path / "folder").mkdir()
    environment = os.environ | {"KRILL_OUTPUTS": "가", "CUDA_VISIBLE_DEVICES": "1"}
    environment.pop("PYTEST_CURRENT_TEST", None)
    commands = [
        (python(FACTS, "a b", ""), tmp_path / "folder"),
        ([sys.executable, str(tmp_path / "facts.py"), "x"], tmp_path / "folder"),
        ([sys.executable, "-m", "facts", "x"], tmp_path),
    ]
    previous = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        for command, folder in commands:
            forked, real = (
                json.loads(output(each, tmp_path / "out", command, env=environment, cwd=folder))
                for each in (light, PreloadedServer(None, None))
            )
            assert forked == real
            assert forked["cmdline"] == "\0".join(command).rstrip("\0")
    finally:
        signal.signal(signal.SIGUSR2, previous)


def test_exit_codes_and_deaths_are_reported(light: PreloadedServer) -> None:
    for text, code in (
        ("pass", 0),
        ("raise SystemExit(3)", 3),
        ("import os; os._exit(9)", 9),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9),
        ("1 / 0", 1),
        ("raise SystemExit('reason')", 1),
        ("raise SystemExit(256 + 7)", 7),
        ("raise KeyboardInterrupt", -2),
        ("import os; os.close(1); os.open('/dev/full', os.O_WRONLY); print()", None),
    ):
        real = subprocess.run(python(text), capture_output=True).returncode
        assert code in (None, real)
        process = light.spawn(python(text), stderr=subprocess.DEVNULL)
        assert isinstance(process, PreloadedProcess)
        assert process.wait(20) == process.poll() == process.returncode == real


def test_what_is_registered_for_the_end_is_done(light: PreloadedServer, tmp_path: Path) -> None:
    text = (
        "import atexit, sys, threading, time\n"
        "atexit.register(print, 'end')\n"
        "threading.Thread(target=lambda: (time.sleep(0.1), print('thread'))).start()\n"
        "sys.stdout.write('begin ')"
    )
    assert output(light, tmp_path / "out", python(text)) == "begin thread\nend\n"


def test_signals_arrive(light: PreloadedServer, tmp_path: Path) -> None:
    waits = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        f"open({str(tmp_path / 'ready')!r}, 'w').close()\n"
        "time.sleep(60)"
    )
    process = light.spawn(python(waits))
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    wait_until((tmp_path / "ready").exists)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 75
    process.send_signal(signal.SIGTERM)  # nothing is there to receive it
    killed = light.spawn(python("import time; time.sleep(60)"))
    killed.kill()
    assert killed.wait(20) == -signal.SIGKILL


def test_each_child_draws_its_own_random_numbers(server: PreloadedServer, tmp_path: Path) -> None:
    text = "import numpy, random, torch; print(random.random(), numpy.random.rand(), torch.initial_seed())"
    first, second = (output(server, tmp_path / "out", python(text)).split() for _ in range(2))
    assert first[0] != second[0]
    assert first[1] != second[1]
    assert first[2] == second[2]  # torch begins with the same seed in every process


def test_it_falls_back_to_a_real_process(light: PreloadedServer, tmp_path: Path) -> None:
    """What is read during the imports, another interpreter, options of Python."""
    same = os.environ | {"SLURM_JOB_ID": "7", "PATH": "/bin:/usr/bin"}
    for command, environment, kind in (
        (python("pass"), same, PreloadedProcess),
        (python("pass"), os.environ | {"HF_HOME": str(tmp_path)}, subprocess.Popen),
        (python("pass"), os.environ | {"OMP_NUM_THREADS": "3"}, subprocess.Popen),
        ([sys.executable, "-X", "dev", "-c", "pass"], None, subprocess.Popen),
        (["true"], None, subprocess.Popen),
    ):
        process = light.spawn(command, env=environment)
        assert isinstance(process, kind), command
        assert process.wait(20) == 0


def test_scripts_of_this_installation_are_known(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("krill-train")
    assert parse_python_command([str(script), "-m", "a=1"]) == [str(script), "-m", "a=1"]
    other = tmp_path / "script"
    other.write_text("#!/usr/bin/env python3\n")
    assert parse_python_command([str(other)]) is None


@pytest.mark.parametrize(
    "text",
    [
        "import threading, time\nthreading.Thread(target=time.sleep, args=[60], daemon=True).start()",
        "1 / 0",
    ],
    ids=["thread", "error"],
)
def test_a_server_that_may_not_fork_is_not_used(text: str, tmp_path: Path) -> None:
    (tmp_path / "module_that_is_preloaded.py").write_text(text)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    with PreloadedServer.start(["module_that_is_preloaded"], environment) as server:
        process = server.spawn(python("pass"), env=environment)
        assert isinstance(process, subprocess.Popen)
        assert process.wait(20) == 0


def test_children_end_with_the_server_and_the_server_with_its_owner(tmp_path: Path) -> None:
    """kill -9 of the process that started the server, or of the server, leaves no process and no folder behind."""
    owner = (
        "import os, sys, time\n"
        "from krill.launch.preload import PreloadedServer\n"
        "server = PreloadedServer.start(['json'])\n"
        "child = server.spawn([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(server.process.pid, child.pid, server.address, flush=True)\n"
        "print(child.wait(), flush=True)\n"
    )
    for victim in ("owner", "server"):
        with subprocess.Popen(python(owner), stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            server, child, address = process.stdout.readline().split()
            assert running(int(child))
            os.kill(process.pid if victim == "owner" else int(server), signal.SIGKILL)
            wait_until(lambda child=child: not running(int(child)))
            if victim == "owner":
                wait_until(lambda server=server: not running(int(server)))
                assert not Path(address).parent.exists()
            else:
                assert process.stdout.readline() == "-9\n"


def test_a_child_ends_with_its_handle(light: PreloadedServer) -> None:
    process = light.spawn(python("import time; time.sleep(60)"))
    pid = process.pid
    assert running(pid)
    del process
    wait_until(lambda: not running(pid))


def test_relay_stands_in_for_a_command(light: PreloadedServer, tmp_path: Path) -> None:
    relay = "import sys; from krill.launch.preload import relay_command as f; sys.exit(f(sys.argv[1], sys.argv[2:]))"
    echo = python("import sys; print(sys.stdin.read().upper()); sys.exit(5)")
    done = subprocess.run(python(relay, light.address, *echo), input="text", text=True, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (5, "TEXT\n", "")
    waits = python("import signal, time; print(flush=True); time.sleep(60)")
    with subprocess.Popen(python(relay, light.address, *waits), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
        assert process.wait(20) == -signal.SIGTERM


def test_without_a_fork_every_command_is_a_real_process() -> None:
    with PreloadedServer.start(["torch"], can_fork=False) as server:
        assert server.process is None
        process = server.spawn(python("raise SystemExit(4)"))
        assert isinstance(process, subprocess.Popen)
        assert process.wait() == 4


def test_the_server_refuses_a_broken_request(light: PreloadedServer) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(light.address))
        connection.sendall(b"\x02\0\0\0{]")
        assert connection.recv(4) == b""
    assert light.spawn(python("pass")).wait(20) == 0


def test_only_its_owner_reaches_the_server(light: PreloadedServer) -> None:
    assert light.address is not None
    assert light.address.parent.stat().st_mode & 0o77 == 0


def test_torch_says_whether_cuda_was_initialized() -> None:
    """A private name that the server asks; gone after an upgrade, it would fork where it must not."""
    import torch

    assert torch.cuda._is_in_bad_fork() is False
    assert preload_server.IMPORT_ENVIRONMENT["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1"
    assert "PYTORCH_NVML_BASED_CUDA_CHECK" in Path(torch.cuda.__file__).read_text()
