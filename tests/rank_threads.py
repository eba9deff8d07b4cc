"""Ranks of an evaluation as threads of this process."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from typing import Any, TypeVar

from krill.evaluation.rank_share import RankShare

T = TypeVar("T")


def run_ranks(world_size: int, work: Callable[[RankShare], T]) -> list[T]:
    """Returns what `work` returns on each rank."""
    barrier = Barrier(world_size, timeout=60)
    values: list[Any] = [None] * world_size

    def gather(rank: int, value: Any) -> list[Any]:
        values[rank] = value
        barrier.wait()
        gathered = list(values)
        barrier.wait()
        return gathered

    with ThreadPoolExecutor(world_size) as pool:
        shares = [RankShare(rank, world_size, partial(gather, rank)) for rank in range(world_size)]
        return list(pool.map(work, shares))
