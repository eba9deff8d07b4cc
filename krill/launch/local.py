"""The ranks of one run on this machine, started by one parent, which owns the run folder and outlives them.

Each is a process of krill.launch.rank that reads its rank from the environment, as torchrun sets it. Rank 0 prints to
the terminal; the others write log-rank1.txt and so on beside log.txt. A signal to the parent is forwarded to all of
them. When one fails, the others are terminated; when one falls silent (hardware.stall), all are killed; when the
parent is killed, the kernel kills all.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from krill import atomic
from krill.config.schema import HardwareConfig, ModelCommandConfig, TrainConfig
from krill.errors import KrillError, SignalInterrupt, UsageError
from krill.launch.preload import PreloadedServer
from krill.launch.rank import RANK_CONFIG
from krill.launch.rank_errors import get_rank_log_name, is_connection_error, pop_first_rank_error
from krill.launch.rank_watch import WATCH_SECONDS, RankWatch
from krill.launch.supervise import ProcessGroup
from krill.resources import count_cpu_cores
from krill.runs.slurm import get_node_name
from krill.signals import EXIT_CODES, describe_exit
from krill.training.callbacks.heartbeat import HEARTBEAT_VARIABLE
from krill.training.compute.device import resolve_device, resolve_world_size

RANK_GRACE_SECONDS = 10.0
"""Seconds in which the other ranks may end on their own after one has failed."""
MEMORY_HINT = (
    ". The kernel does that when memory runs out; if it did, lower batch.micro_batch_size, hardware.processes or "
    "hardware.workers"
)


def run_on_ranks(config: TrainConfig, folder: Path, store: Path, tokenizer: Path) -> None:
    """Runs krill.training.run.run_training on hardware.processes ranks in `folder`.

    Raises:
        KrillError: a rank failed; the message says which one, and why.
        SignalInterrupt: a signal ended the ranks after their state was saved.
    """
    world_size = resolve_world_size(config)
    pop_first_rank_error(folder, world_size)  # of a parent that was killed
    # The ranks meet at this store: unlike a port that was free a moment ago, no other process can take it.
    store_server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    command = [sys.executable, "-m", "krill.launch.rank", str(folder), str(store), str(tokenizer)]
    stall = config.hardware.stall
    watch = RankWatch(folder, world_size, None if stall is None else 60 * stall)
    ranks = ProcessGroup(PreloadedServer.get_running().spawn)
    rank_config = folder / RANK_CONFIG
    try:
        atomic.write_json(rank_config, config.model_dump(mode="json", by_alias=True), 0o600)
        for rank in range(world_size):
            environment = build_rank_environment(rank, world_size, config.hardware, store_server.port)
            ranks.start(rank, command, environment | {HEARTBEAT_VARIABLE: str(watch.files[rank])})
        with ranks.forward_signals():
            failed = _wait_for_failures(ranks, watch)
    finally:
        ranks.kill()  # those that still run after an error
        watch.remove_files()
        rank_config.unlink(missing_ok=True)
    if failed:
        raise _build_rank_error(failed, pop_first_rank_error(folder, world_size), world_size)


def count_local_ranks(config: ModelCommandConfig) -> int:
    """Returns hardware.processes, resolved. Raises UsageError if there are fewer CUDA devices than ranks."""
    processes = config.hardware.processes
    assert processes != "auto"  # resolved by krill.launch.auto_processes
    if processes > 1 and resolve_device(config.device) == "cuda" and processes > torch.cuda.device_count():
        raise UsageError(
            f"hardware.processes={processes}: there are {torch.cuda.device_count()} CUDA devices; use "
            "hardware.processes=auto"
        )
    return processes


def build_rank_environment(rank: int, world_size: int, hardware: HardwareConfig, port: int) -> dict[str, str]:
    """Returns torchrun's variables for `rank`, and its share of the CPU; `port`: that of a TCPStore of the parent."""
    variables = {
        "OMP_NUM_THREADS": get_rank_threads(hardware, world_size),
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": world_size,
        "LOCAL_WORLD_SIZE": world_size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "TORCHELASTIC_USE_AGENT_STORE": True,
    }
    return {name: str(value) for name, value in variables.items()}


def get_rank_threads(hardware: HardwareConfig, world_size: int) -> str:
    """Returns OMP_NUM_THREADS of a rank: hardware.threads, else as it is set here, else its share of the cores."""
    share = max(1, count_cpu_cores() // world_size)
    return str(hardware.threads or os.environ.get("OMP_NUM_THREADS") or share)


def _wait_for_failures(ranks: ProcessGroup, watch: RankWatch) -> dict[int, int]:
    """Waits until all ranks have ended. Returns the return codes of those that failed, the first one first.

    Raises KrillError if a rank falls silent; all are killed.
    """
    failed: dict[int, int] = {}
    while ranks and not failed:
        failed = {rank: code for rank, code in ranks.wait_any(WATCH_SECONDS) if code}
        silent = watch.find_silent_rank(ranks.numbers)
        if silent is not None and not failed:
            ranks.wait(0.0)
            raise KrillError(
                f"rank {silent.rank} of {len(watch.files)} on {get_node_name()} has shown no sign of life for "
                f"{silent.seconds / 60:.0f} minutes after step {silent.step}: it was stopped, or it got no CPU. All "
                "ranks were killed; run the same command to resume from the last checkpoint (hardware.stall sets the "
                "limit, null: none)"
            )
    return failed | {rank: code for rank, code in ranks.wait(RANK_GRACE_SECONDS).items() if code}


def _build_rank_error(
    failed: dict[int, int], reported: tuple[int, str] | None, world_size: int
) -> KrillError | SignalInterrupt:
    """Returns the error of the rank that failed first: what it reported, else how it ended."""
    rank, code = next(iter(failed.items()))
    if reported is None and -code in EXIT_CODES:  # before it could report
        received = signal.Signals(-code)
        return SignalInterrupt(
            f"interrupted by {received.name}; run the same command to resume", EXIT_CODES[received]
        )
    killed = next((rank for rank, code in failed.items() if code < 0 and -code not in EXIT_CODES), None)
    if killed is not None and (killed == rank or reported is None or is_connection_error(reported[1])):
        return KrillError(
            f"rank {killed} of {world_size} on {get_node_name()} {describe_exit(failed[killed])}; run the same "
            f"command to resume from the last checkpoint. {get_rank_log_name(killed)} of the run shows its last steps"
            + (MEMORY_HINT if failed[killed] == -signal.SIGKILL else "")
        )
    if reported is None:
        return KrillError(
            f"rank {rank} {describe_exit(code)}; {get_rank_log_name(rank)} of the run shows its last steps"
        )
    first, error = reported
    message = error if first == 0 else f"rank {first}: {error} ({get_rank_log_name(first)})"
    if code in EXIT_CODES.values():
        return SignalInterrupt(message, code)
    failure = KrillError(message)
    failure.exit_code = code if code > 0 else failure.exit_code
    return failure
