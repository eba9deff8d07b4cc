"""A rank that was killed, or has fallen silent, is the one that the error of the run names."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from krill.errors import KrillError
from krill.launch import local
from krill.launch.rank_watch import RankWatch
from krill.launch.supervise import ProcessGroup
from krill.training.callbacks import heartbeat

GLOO = "RuntimeError: [gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer"


@pytest.mark.parametrize(
    ("failed", "reported", "message"),
    [
        ({1: -9, 0: 1}, (0, GLOO), "rank 1 of 2 on .* was killed by SIGKILL.*lower batch.micro_batch_size"),
        ({0: 1, 1: -9}, (0, GLOO), "rank 1 of 2 on .* was killed by SIGKILL"),
        ({1: -11, 0: 1}, (0, GLOO), "rank 1 of 2 on .* was killed by SIGSEGV"),
        ({0: -9}, None, "rank 0 of 2 on .* was killed by SIGKILL"),
        ({0: 1, 1: -6}, (0, "ValueError: no"), "^ValueError: no$"),
        ({0: 1, 1: 1}, (1, "ValueError: no"), "^rank 1: ValueError: no"),
    ],
)
def test_killed_rank_is_named_and_not_the_one_that_lost_it(
    failed: dict[int, int], reported: tuple[int, str] | None, message: str
) -> None:
    error = local._build_rank_error(failed, reported, 2)
    assert isinstance(error, KrillError)
    assert error.exit_code == 1
    with pytest.raises(KrillError, match=message):
        raise error


def test_stopped_rank_is_named_with_its_step_and_all_are_killed(tmp_path: Path) -> None:
    beat = (
        "import os, sys, time\nfile = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)\nfor n in range(10**6):\n"
        "    os.pwrite(file, f'17 {n}'.encode(), 0); print('ready', flush=True); time.sleep(0.01)"
    )
    watch, group = RankWatch(tmp_path, 2, 3), ProcessGroup()
    for rank in range(2):
        group.start(rank, [sys.executable, "-c", beat, str(watch.files[rank])], {}, tmp_path / str(rank))
        while not watch.files[rank].exists() or not watch.files[rank].stat().st_size:
            time.sleep(0.01)
    watch.changed_at = [time.monotonic()] * 2
    stopped = group._running[1]
    os.kill(stopped.pid, signal.SIGSTOP)
    with pytest.raises(KrillError, match=r"rank 1 of 2 on .* has shown no sign of life .* after step 17"):
        local._wait_for_failures(group, watch)
    assert stopped.poll() == -signal.SIGKILL
    watch.remove_files()
    assert not list(tmp_path.glob(".heartbeat*"))


def test_watch_that_was_paused_itself_blames_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("krill.launch.rank_watch.time.monotonic", lambda: clock.now)
    watch = RankWatch(tmp_path, 1, 60)
    clock.now = 3600.0
    assert watch.find_silent_rank([0]) is None
    for _ in range(60):
        clock.now += 1
        assert watch.find_silent_rank([0]) is None
    clock.now += 1
    silent = watch.find_silent_rank([0])
    assert silent is not None
    assert (silent.rank, silent.step) == (0, 0)
    watch.stall_seconds = None
    assert watch.find_silent_rank([0]) is None


def test_heartbeat_has_the_step_and_goes_on_between_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setenv(heartbeat.HEARTBEAT_VARIABLE, str(tmp_path / "beat"))
    state: Any = SimpleNamespace(global_step=3)
    nothing: Any = None
    with heartbeat.Heartbeat() as beats:
        beats.on_step_end(nothing, state, nothing)
        step, first = map(int, (tmp_path / "beat").read_text().split())
        time.sleep(0.1)
        _, later = map(int, (tmp_path / "beat").read_text().split())
    assert step == 3
    assert later > first
