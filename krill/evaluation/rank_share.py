"""How the ranks of a process group share the sequences of an evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from krill.errors import KrillError, UsageError

T = TypeVar("T")


class EvaluationError(KrillError):
    """An evaluation that failed on a rank; all ranks raise it at the same point."""


def _gather_own(value: Any) -> list[Any]:
    return [value]


def _continue() -> None:
    pass


@dataclass(frozen=True)
class RankShare:
    """The share of one rank."""

    rank: int = 0
    world_size: int = 1
    gather: Callable[[Any], list[Any]] = _gather_own
    """Returns the values of all ranks, ordered by rank, on every rank."""
    begin_batch: Callable[[], None] = _continue
    """Called on all ranks before each batch; what it raises, it raises on all ranks."""
    has_sharded_model: bool = False
    """Whether a forward pass needs all ranks, so that none can continue when one has failed."""

    def run_on_rank0(self, work: Callable[[], T]) -> T:
        """Runs `work` on rank 0 alone and returns its result on every rank.

        If it fails, every rank raises UsageError if it did, and otherwise EvaluationError.
        """
        if self.world_size == 1:
            return work()
        result: T | None = None
        error: KrillError | None = None
        if self.rank == 0:
            try:
                result = work()
            except UsageError as raised:
                error = UsageError(str(raised))
            except Exception as raised:
                error = EvaluationError(f"{type(raised).__name__}: {raised}")
        shared: tuple[T, KrillError | None] = self.gather((result, error))[0]
        if shared[1] is not None:
            raise shared[1]
        return shared[0]


ONLY_RANK = RankShare()
