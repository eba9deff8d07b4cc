"""Groups items into batches of bounded size, so that memory is bounded by a batch and not by the whole text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

ItemT = TypeVar("ItemT")


def batch_by_size(
    items: Iterable[ItemT], max_size: int, get_size: Callable[[ItemT], int], max_items: int | None = None
) -> Iterator[list[ItemT]]:
    """Yields consecutive items as lists, each ended by a total size of `max_size` or more, or by `max_items`."""
    batch: list[ItemT] = []
    total = 0
    for item in items:
        batch.append(item)
        total += get_size(item)
        if total >= max_size or len(batch) == max_items:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch
