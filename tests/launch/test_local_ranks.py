"""The ranks of a run on this machine share its cores, and none of them outlives an error of their parent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from krill.launch import local
from krill.launch.local import get_rank_threads, run_on_ranks


def make_hardware(threads: int | None = None) -> Any:
    return SimpleNamespace(threads=threads, stall=None)


def test_threads_are_those_of_the_configuration_else_of_the_environment_else_an_equal_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(local, "count_cpu_cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert get_rank_threads(make_hardware(threads=5), 2) == "5"
    assert get_rank_threads(make_hardware(), 2) == "3"
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert get_rank_threads(make_hardware(), 2) == "4"
    assert get_rank_threads(make_hardware(), 16) == "1"


def test_ranks_are_killed_when_one_of_them_cannot_be_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[object] = []

    class Group:
        def __init__(self, spawn: object) -> None:
            pass

        def start(self, rank: int, *_: object) -> None:
            events.append(rank)
            if rank == 1:
                raise OSError("no more processes")

        def kill(self) -> None:
            events.append("kill")

    monkeypatch.setattr(local, "ProcessGroup", Group)
    monkeypatch.setattr(local, "resolve_world_size", lambda config: 2)
    config: Any = SimpleNamespace(hardware=make_hardware(), model_dump=lambda **_: {})
    with pytest.raises(OSError, match="no more processes"):
        run_on_ranks(config, tmp_path, tmp_path, tmp_path)
    assert events == [0, 1, "kill"]
    assert list(tmp_path.iterdir()) == []


RANK = """
import sys, time
from pathlib import Path
from types import ModuleType

class Training(ModuleType):
    def __getattr__(self, name):  # a rank imports it once it ends with its parent
        if name != "run_training":
            raise AttributeError(name)
        print("ready", flush=True)
        time.sleep(20)
        print("outlived its parent", flush=True)

sys.modules["krill.training.run"] = Training("krill.training.run")
from krill.launch import rank
rank.main(*map(Path, sys.argv[1:]))
"""
PARENT = """
import subprocess, sys
process = subprocess.Popen([sys.executable, "-c", *sys.argv[1:]])
process.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux does it")
def test_a_rank_that_is_a_process_of_its_own_ends_with_a_killed_parent(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, RANK, *[str(tmp_path)] * 3]
    environment = os.environ | {"RANK": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        parent.kill()
        assert parent.stdout.read() == "", "read to the end, which the rank's own end makes"
