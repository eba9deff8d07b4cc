"""The ranks of one evaluation on this machine, which share the sequences of each task.

Each is a process `python -m krill.launch.evaluation_rank FOLDER`, where FOLDER is temporary. Rank 0
writes the results and logs to the terminal.
"""

from __future__ import annotations

import signal
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist

from krill import atomic
from krill.config.schema import EvaluateConfig
from krill.errors import UsageError
from krill.launch.local import RANK_GRACE_SECONDS, build_rank_environment
from krill.launch.preload import PreloadedServer
from krill.launch.rank_errors import build_rank_failure, pop_first_rank_error
from krill.launch.supervise import ProcessGroup
from krill.training.compute.device import resolve_device

EVALUATION_CONFIG = "config.json"
"""The configuration of the ranks, and the folder of the results."""


def count_evaluation_ranks(config: EvaluateConfig) -> int:
    """Returns the number of ranks on this machine. Raises UsageError if they need more GPUs than there are."""
    processes = config.hardware.processes
    assert processes != "auto"  # resolved by krill.launch.auto_processes
    if processes > 1 and resolve_device(config.device) == "cuda" and processes > torch.cuda.device_count():
        raise UsageError(
            f"hardware.processes={processes}: there are {torch.cuda.device_count()} CUDA devices; use "
            "hardware.processes=auto"
        )
    return processes


def evaluate_on_ranks(config: EvaluateConfig, root: Path) -> None:
    """Evaluates the tasks of `config` on hardware.processes ranks, of which rank 0 writes the results below `root`.

    Raises KrillError if one fails, SignalInterrupt if a signal ended them.
    """
    world_size = count_evaluation_ranks(config)
    store_server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = ProcessGroup(PreloadedServer.get_running().spawn)
    failed: dict[int, int] = {}
    with tempfile.TemporaryDirectory(prefix="krill-evaluate-") as name:
        folder = Path(name)
        content = {"config": config.model_dump(mode="json", by_alias=True), "root": str(root)}
        atomic.write_json(folder / EVALUATION_CONFIG, content, 0o600)
        command = [sys.executable, "-m", "krill.launch.evaluation_rank", name]
        try:
            for rank in range(world_size):
                ranks.start(
                    rank,
                    command,
                    build_rank_environment(rank, world_size, config.hardware, store_server.port),
                )
            with ranks.forward_signals():
                while ranks and not failed:
                    failed = {rank: code for rank, code in ranks.wait_any() if code}
                if failed:
                    ranks.send_signal(signal.SIGTERM)
                failed |= {rank: code for rank, code in ranks.wait(RANK_GRACE_SECONDS).items() if code}
        finally:
            ranks.kill()
        reported = pop_first_rank_error(folder, world_size)
    if failed:
        raise build_rank_failure(
            failed, reported, "the results so far are kept, run the same command to evaluate the rest"
        )
