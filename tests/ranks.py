"""Several processes of this machine, joined by gloo, for the tests of several rooms."""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WAIT = timedelta(seconds=300)
"""A rank that waits longer for another fails, so that a test does not hang."""


def on_ranks(ranks: int, work: Callable[..., Any], *arguments: Any, folder: Path) -> list[Any]:
    """What `work(*arguments)` returns on each of `ranks` processes, joined in a process group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_rank, (ranks, port, work, arguments, folder), nprocs=ranks)
    return [torch.load(folder / f"{rank}.pt") for rank in range(ranks)]


def _rank(rank: int, ranks: int, port: int, work: Callable[..., Any], arguments: Any, folder: Path) -> None:
    torch.set_num_threads(1)
    place = {
        "CUDA_VISIBLE_DEVICES": "",  # FSDP2 would shard over the devices of a machine that has some
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": ranks,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ |= {name: str(value) for name, value in place.items()}
    dist.init_process_group("gloo", timeout=WAIT)
    # What it made is gone before the process group is: else the process may abort at its end.
    torch.save(work(*arguments), folder / f"{rank}.pt")
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()
