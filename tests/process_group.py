"""Processes of this machine in one gloo process group, shared by several rooms."""

from __future__ import annotations

import gc
import multiprocessing
import os
import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

TIMEOUT = timedelta(seconds=300)
"""A rank that waits longer for another fails, so that a test does not hang."""

PRELOADED_MODULES = [
    "accelerate",
    "hypothesis",
    "pytest",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.debug",
    "torch.nn.parallel",
    "torch.utils.flop_counter",
    "transformers",
    "transformers.pytorch_utils",
    "krill.training.run",
    "warm_fork_server",
]
"""Imported once by the server from which ranks are forked: importing them takes longer than most tests."""


def run_on_ranks(world_size: int, work: Callable[..., Any], *arguments: Any, folder: Path) -> list[Any]:
    """Runs `work(*arguments)` on each of `world_size` processes in a process group; returns their results by rank.

    `folder` receives the results.
    """
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    multiprocessing.set_forkserver_preload(PRELOADED_MODULES)
    environment = dict(os.environ)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # Python 3.11's server does not get sys.path
        mp.start_processes(
            _run_rank,
            (world_size, port, environment, work, arguments, folder),
            nprocs=world_size,
            start_method="forkserver",
        )
    return [torch.load(folder / f"{rank}.pt") for rank in range(world_size)]


def _run_rank(
    rank: int,
    world_size: int,
    port: int,
    environment: dict[str, str],
    work: Callable[..., Any],
    arguments: Any,
    folder: Path,
) -> None:
    torch.set_num_threads(1)
    variables = {
        "CUDA_VISIBLE_DEVICES": "",  # FSDP2 would shard over the devices of a machine that has some
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": world_size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ.clear()  # of the fork server, which may have started in another test
    os.environ |= environment | {name: str(value) for name, value in variables.items()}
    dist.init_process_group("gloo", timeout=TIMEOUT)
    torch.save(work(*arguments), folder / f"{rank}.pt")
    gc.collect()  # frees what `work` created before the process group; the process may abort otherwise
    if dist.is_initialized():  # krill.training.ranks ends the group of a training
        dist.barrier()
        dist.destroy_process_group()
