"""Kills, signals, full disks and flipped bits, for tests of what a run survives."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from console import run_words

from krill.training.callbacks.progress import ProgressReporter

_TRAIN_AND_KILL = """
import os, signal, sys
from krill.cli import app
from krill.cli.train import run_task
from krill.runs import checkpoints
from krill.training.callbacks.progress import ProgressReporter

step, while_saving = int(sys.argv[1]), sys.argv[2] == "saving"

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def on_step_end(self, args, state, control, **rest):
    if state.global_step == step:
        if not while_saving:
            die()
        control.should_save = True
        checkpoints._fsync_files = die
    original(self, args, state, control, **rest)

original, ProgressReporter.on_step_end = ProgressReporter.on_step_end, on_step_end
overrides, sys.argv = sys.argv[3:], ["krill-train"]
sys.exit(app.main("train", run_task, overrides))
"""


def train_and_kill(krill_train: Any, step: int, when: str, *overrides: str) -> None:
    """Runs krill-train in a new process, which is killed at the end of `step` or while it saves that step."""
    command = [
        sys.executable, "-c", _TRAIN_AND_KILL, str(step), when, *krill_train.overrides, *overrides,
    ]  # fmt: skip
    done = run_words(Path.cwd(), command, dict(os.environ))
    assert done.returncode == -signal.SIGKILL, done.stderr


def train_and_signal(krill_train: Any, number: int, step: int, *overrides: str) -> int:
    """Runs krill-train in this process, sends it signal `number` during `step`, and returns its exit code."""
    original = ProgressReporter.on_step_end

    def on_step_end(self: ProgressReporter, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if state.global_step == step - 1:
            os.kill(os.getpid(), number)
        original(self, args, state, control, **rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProgressReporter, "on_step_end", on_step_end)
        return krill_train(*overrides)


@contextmanager
def limit_file_size(size: int) -> Iterator[None]:
    """Lets no file grow beyond `size` bytes; a write past it fails as on a full disk, what was written remains."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def flip_bit(file: Path) -> None:
    """Flips one bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
