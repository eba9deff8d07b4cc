"""Texts a batch at a time, so that memory is bounded by a batch and not by the text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

ItemT = TypeVar("ItemT")


def batch_by_size(
    items: Iterable[ItemT], characters: int, size: Callable[[ItemT], int], most: int | None = None
) -> Iterator[list[ItemT]]:
    """Neighbouring items together until they have so many characters, by `size`, or are `most`."""
    batch: list[ItemT] = []
    held = 0
    for item in items:
        batch.append(item)
        held += size(item)
        if held >= characters or len(batch) == most:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch
