"""How the ranks of a process group share the sequences of an evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def _gather_own(value: Any) -> list[Any]:
    return [value]


@dataclass(frozen=True)
class RankShare:
    """The share of one rank."""

    rank: int = 0
    world_size: int = 1
    gather: Callable[[Any], list[Any]] = _gather_own
    """Returns the values of all ranks, ordered by rank, on every rank."""


ONLY_RANK = RankShare()
