"""The pool runs commands in slots with their own devices; a failing command does not affect the others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from krill.errors import SignalInterrupt, UsageError
from krill.launch import pool
from krill.launch.devices import ALLOCATOR_VARIABLES, configure_cuda_allocator, list_visible_gpus
from krill.launch.pool import build_slot_environments, run_commands
from krill.launch.preload import PreloadedServer
from krill.signals import raise_on_signal


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,GPU-abc")


def test_visible_devices_follow_cuda_visible_devices(gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list_visible_gpus() == ["0", "1", "2", "GPU-abc"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert list_visible_gpus() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,-1,2")
    assert list_visible_gpus() == ["1"]


@pytest.mark.parametrize("name", ALLOCATOR_VARIABLES)
def test_allocator_grows_its_segments_unless_the_environment_configures_it(
    name: str, gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ALLOCATOR_VARIABLES:
        monkeypatch.setenv(variable, "")
    configure_cuda_allocator("cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        configure_cuda_allocator("auto")
    assert not any(os.environ[variable] for variable in ALLOCATOR_VARIABLES)
    configure_cuda_allocator("auto")
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "")
    monkeypatch.setenv(name, "max_split_size_mb:64")
    configure_cuda_allocator("cuda")
    values = {variable: os.environ[variable] for variable in ALLOCATOR_VARIABLES}
    assert values == dict.fromkeys(ALLOCATOR_VARIABLES, "") | {name: "max_split_size_mb:64"}


def test_each_slot_has_its_own_devices(gpus: None) -> None:
    assert build_slot_environments("auto", "auto", ranks=1) == [
        {"CUDA_VISIBLE_DEVICES": name} for name in ("0", "1", "2", "GPU-abc")
    ]
    assert build_slot_environments("auto", "cuda", ranks=2) == [
        {"CUDA_VISIBLE_DEVICES": "0,1"},
        {"CUDA_VISIBLE_DEVICES": "2,GPU-abc"},
    ]
    assert len(build_slot_environments(1, "cuda", ranks=2)) == 1
    with pytest.raises(
        UsageError, match=r"sweep.max_parallel=5: 4 GPUs, 1 for each point: use sweep.max_parallel=4"
    ):
        build_slot_environments(5, "auto", ranks=1)
    assert build_slot_environments("auto", "cpu", ranks=1) == [{}]


def test_slots_share_the_cores_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(pool, "count_cpu_cores", lambda: 8)
    assert build_slot_environments(2, "cpu", ranks=1) == [{"OMP_NUM_THREADS": "4"}] * 2
    assert build_slot_environments(2, "cpu", ranks=2) == [{"OMP_NUM_THREADS": "2"}] * 2
    assert build_slot_environments(1, "cpu", ranks=1) == [{}]


def test_auto_runs_as_many_commands_at_once_as_have_cores_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(pool, "count_cpu_cores", lambda: 8)
    monkeypatch.setattr(pool, "MEMORY_PER_COMMAND", 1)
    build = partial(build_slot_environments, "auto", "cpu")
    assert build(ranks=1, num_commands=100) == [{"OMP_NUM_THREADS": "1"}] * 8
    assert build(ranks=1, num_commands=3) == [{"OMP_NUM_THREADS": "2"}] * 3
    assert build(ranks=4, num_commands=3) == [{"OMP_NUM_THREADS": "1"}] * 2
    assert len(build(ranks=1, num_commands=100, threads=4)) == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert build(ranks=1, num_commands=100) == [{}] * 4
    monkeypatch.setattr(pool, "MEMORY_PER_COMMAND", 2**60)
    assert build(ranks=1, num_commands=100) == [{}]


def test_commands_are_forked_from_a_server(tmp_path: Path) -> None:
    slot = {"CUDA_VISIBLE_DEVICES": "3"}
    text = "import os, sys; print(os.environ['CUDA_VISIBLE_DEVICES'], 'colorsys' in sys.modules); sys.exit(4)"
    codes: list[int] = []
    with PreloadedServer.start(["colorsys"]) as server:
        run_commands(
            [python_command(text)], [slot], [tmp_path / "0"],
            on_start=lambda index: None, on_exit=lambda index, code: codes.append(code) is None, spawn=server.spawn,
        )  # fmt: skip
    assert (tmp_path / "0.out").read_text() == "3 True\n"
    assert codes == [4]


def python_command(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_every_exit_is_reported_and_affects_no_other_command(tmp_path: Path) -> None:
    commands = [
        python_command("print('가', flush=True)"),
        python_command("import os; os._exit(9)"),
        python_command("raise SystemExit(3)"),
        python_command("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"),
        python_command("import os; print(os.environ['SLOT'])"),
    ]
    codes: dict[int, int] = {}
    run_commands(
        commands, [{"SLOT": "a"}, {"SLOT": "b"}], [tmp_path / str(index) for index in range(5)],
        on_start=lambda index: None, on_exit=lambda index, code: codes.update({index: code}) or True,
    )  # fmt: skip
    assert codes == {0: 0, 1: 9, 2: 3, 3: -9, 4: 0}
    assert (tmp_path / "0.out").read_text() == "가\n"
    assert (tmp_path / "4.out").read_text() in ("a\n", "b\n")


def test_at_most_one_command_runs_in_each_slot(tmp_path: Path) -> None:
    running: set[int] = set()
    max_running = 0

    def on_start(index: int) -> None:
        nonlocal max_running
        running.add(index)
        max_running = max(max_running, len(running))

    def on_exit(index: int, code: int) -> bool:
        running.remove(index)
        return True

    run_commands([python_command("import time; time.sleep(0.1)")] * 7, [{}] * 3, None, on_start, on_exit)
    assert max_running == 3


def test_no_command_starts_after_on_exit_returned_false() -> None:
    started: list[int] = []
    run_commands(
        [python_command("raise SystemExit(1)")] * 4, [{}], None, started.append, lambda index, code: not code
    )
    assert started == [0]


def test_a_signal_is_forwarded_and_the_running_commands_are_waited_for(tmp_path: Path) -> None:
    command = (
        "import signal, sys, time\n"
        f"def stop(*_): time.sleep(0.5); open({str(tmp_path / 'saved')!r}, 'w').close(); sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        f"open({str(tmp_path / 'ready')!r}, 'w').close()\n"
        "time.sleep(60)"
    )

    def send_when_ready() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send_when_ready).start()
    with pytest.raises(SignalInterrupt), raise_on_signal():
        run_commands([python_command(command)], [{}], None, lambda index: None, lambda index, code: True)
    assert (tmp_path / "saved").exists()


@pytest.mark.slow
def test_points_are_killed_with_their_parent(tmp_path: Path) -> None:
    """kill -9 of the parent of a sweep leaves no process behind."""
    arguments = [
        "-m",
        "seed=0,1",
        "model=llama_pico",
        "sequence_len=64",
        "steps=100000",
        "sweep.max_parallel=2",
        "device=cpu",
    ]
    script = Path(sys.executable).with_name("krill-train")
    environment = os.environ | {"KRILL_OUTPUTS": str(tmp_path), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [script, *arguments], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL
    ) as parent:
        deadline = time.monotonic() + 120
        while len(list(tmp_path.glob("sweeps/*/*/metrics.jsonl"))) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        parent.kill()
    deadline = time.monotonic() + 10
    while _list_running_points(str(tmp_path)):
        assert time.monotonic() < deadline, "orphans"
        time.sleep(0.1)


def _list_running_points(text: str) -> list[str]:
    """Returns the ids of the processes of points with `text` in their command line."""
    pids = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command_line = entry.read_bytes()
        except OSError:
            continue
        if text.encode() in command_line and b"krill.cli.job" in command_line:
            pids.append(entry.parent.name)
    return pids
