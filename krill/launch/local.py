"""The ranks of one run on this machine: started by one parent, which owns the folder and outlives them.

Each is a process of `krill.launch.rank` and finds its place in the environment, as torchrun would say it. The first
one speaks to the terminal; the others write log-rank1.txt and so on beside log.txt. A signal to the parent goes on to
all of them. When one fails, the others are ended; when the parent is killed, the kernel ends all.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch.distributed as dist

from krill.config.schema import TrainConfig
from krill.errors import KrillError, SignalInterrupt
from krill.launch.rank_errors import get_rank_log_name, pop_first_rank_error
from krill.signals import EXIT_CODES, describe_exit
from krill.training.batch_shape import resolve_world_size

RANK_GRACE_SECONDS = 10.0
"""Seconds that the others have to end by themselves when one has failed."""
RANK_POLL_SECONDS = 0.05


def run_on_ranks(config: TrainConfig, folder: Path, store: Path, tokenizer: Path) -> None:
    """`krill.training.run.run_training` on hardware.processes ranks, with the configuration that the folder holds.

    Raises:
        KrillError: a rank failed; says which, and why.
        Stopped: a signal ended them after their state was saved.
    """
    count = resolve_world_size(config)
    pop_first_rank_error(folder, count)  # of a parent that was killed
    # They find each other at this store: unlike a port that was free a moment ago, nobody can take it away.
    meeting = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    words = [sys.executable, "-m", "krill.launch.rank", str(folder), str(store), str(tokenizer)]
    ranks = [_start_rank(words, rank, config, meeting.port) for rank in range(count)]
    with _forward_signals(ranks):
        failed = _wait_for_first_failure(ranks)
        if failed is not None:
            _terminate_ranks(ranks)
    if failed is not None:
        raise _build_rank_error(failed, ranks[failed].returncode, pop_first_rank_error(folder, count))


def _start_rank(words: list[str], rank: int, config: TrainConfig, port: int) -> subprocess.Popen[bytes]:
    count = resolve_world_size(config)
    place = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "TORCHELASTIC_USE_AGENT_STORE": True,
    }
    threads = config.hardware.threads or max(1, (os.cpu_count() or 1) // count)
    environment = {"OMP_NUM_THREADS": str(threads)} | os.environ | {k: str(v) for k, v in place.items()}
    return subprocess.Popen(
        words,
        env=environment,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # the terminal's Ctrl-C reaches the parent alone, which passes it on
    )


@contextmanager
def _forward_signals(ranks: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Signals that come go to every rank."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        for rank in ranks:
            rank.send_signal(number)

    previous: dict[signal.Signals, Any] = {number: signal.signal(number, pass_on) for number in EXIT_CODES}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _wait_for_first_failure(ranks: list[subprocess.Popen[bytes]]) -> int | None:
    """Wait for all of them, or until one has failed: its number."""
    while True:
        codes = [rank.poll() for rank in ranks]
        failed = [rank for rank, code in enumerate(codes) if code]
        if failed:
            return failed[0]
        if None not in codes:
            return None
        time.sleep(RANK_POLL_SECONDS)


def _terminate_ranks(ranks: list[subprocess.Popen[bytes]]) -> None:
    """Let those that are left end by themselves, for a while."""
    until = time.monotonic() + RANK_GRACE_SECONDS
    for rank in ranks:
        try:
            rank.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            rank.kill()
            rank.wait()


def _build_rank_error(rank: int, code: int, told: tuple[int, str] | None) -> KrillError | SignalInterrupt:
    """The error of the rank that failed first, by what it said, else by how it ended."""
    if told is None and -code in EXIT_CODES:  # before it could say so
        return SignalInterrupt(
            f"stopped by {signal.Signals(-code).name}; the same command goes on",
            EXIT_CODES[signal.Signals(-code)],
        )
    if told is None:
        return KrillError(
            f"rank {rank} {describe_exit(code)}; {get_rank_log_name(rank)} of the run says how far it had come"
        )
    first, error = told
    message = error if first == 0 else f"rank {first}: {error} ({get_rank_log_name(first)})"
    if code in EXIT_CODES.values():
        return SignalInterrupt(message, code)
    failure = KrillError(message)
    failure.exit_code = code if code > 0 else failure.exit_code
    return failure
