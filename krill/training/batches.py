"""Rows of the store as batches, in an order that is a pure function of (seed, epoch, position)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from krill.data.order import row_at
from krill.data.packing import Row, Rows
from krill.data.store import Split
from krill.signals import die_with_parent
from krill.training.batch_shape import BatchShape
from krill.training.compute import attention

EMPTY_ROW = -1
"""The row that holds padding only: it fills the last step, so that no token is served twice."""


class RowDataset(Dataset[Row]):
    """Rows of one split, by number."""

    def __init__(self, rows: Rows):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows.make_empty_row() if index == EMPTY_ROW else self.rows.get_row(index)


class RowBatchSampler(Sampler[list[int]]):
    """Batches of row numbers for one rank, from the current step to the last.

    The row at global position p of step s, forward pass a, rank r, place j is p = ((s·A + a)·R + r)·M + j:
    the split into A, R and M does not change which rows a step sees, nor their order.
    """

    def __init__(
        self,
        rows: int,
        seed: int,
        steps: int,
        shape: BatchShape,
        last: int | None,
        current_step: Callable[[], int],
        rank: int = 0,
    ):
        """`last`: positions from there on are empty rows; None: the order goes on for ever."""
        self.rows, self.seed, self.steps, self.shape = rows, seed, steps, shape
        self.last, self.current_step, self.rank = last, current_step, rank

    def __len__(self) -> int:
        return self.steps * self.shape.accumulation_steps

    def __iter__(self) -> Iterator[list[int]]:
        size = self.shape.micro_batch_size
        for batch in range(self.current_step() * self.shape.accumulation_steps, len(self)):
            first = (batch * self.shape.world_size + self.rank) * size
            yield [self.get_row(position) for position in range(first, first + size)]

    def get_row(self, position: int) -> int:
        """The row served at a position of the whole run."""
        if self.last is not None and position >= self.last:
            return EMPTY_ROW
        epoch, place = divmod(position, self.rows)
        return row_at(self.seed, epoch, place, self.rows)

    def get_step_rows(self, step: int) -> list[int]:
        """The rows that all ranks together see in a step, which count from 1; without the empty ones."""
        size = self.shape.rows_per_step
        served = (self.get_row(position) for position in range((step - 1) * size, step * size))
        return [row for row in served if row != EMPTY_ROW]


@dataclass(frozen=True)
class RowCollator:
    """Rows → what the model takes: int64 tensors (B, T) and the documents' lengths for the backend."""

    backend: str
    device: torch.device

    def __call__(self, rows: list[Row]) -> dict[str, Any]:
        lengths = [int(length) for row in rows for length in row.lengths]
        return {
            "input_ids": torch.from_numpy(np.stack([row.input_ids for row in rows])),
            "position_ids": torch.from_numpy(np.stack([row.position_ids for row in rows])),
            "labels": torch.from_numpy(np.stack([row.labels for row in rows])),
            **attention.build_boundary_kwargs(self.backend, lengths, self.device),
        }


def map_segments_to_documents(rows: Rows, segments: slice = slice(None)) -> np.ndarray:
    """The number of the document, in its split, that each of some segments of `rows` is from; int64 (segments,)."""
    return np.searchsorted(rows.stream.ends, rows.starts[segments].astype(np.uint64), side="right")


def map_segments_to_sources(rows: Rows, split: Split) -> np.ndarray:
    """The source of each segment of `rows`, which were cut from `split`; uint16 (segments,)."""
    return split.sources[map_segments_to_documents(rows)]


def map_tokens_to_sources(rows: Rows, of_segment: np.ndarray, indices: list[int]) -> torch.Tensor:
    """The source of each token of the rows `indices`; int64 (B, T), 0 at padding."""
    found = np.zeros((len(indices), rows.sequence_len), dtype=np.int64)
    for place, row in enumerate(indices):
        segments = slice(rows.offsets[row], rows.offsets[row + 1])
        tokens = np.repeat(of_segment[segments], rows.lengths[segments])
        found[place, : len(tokens)] = tokens
    return torch.from_numpy(found)


def build_dataloader(
    rows: Rows, batches: Iterable[list[int]], collate: RowCollator, workers: int
) -> DataLoader[Row]:
    """A DataLoader over `batches`; workers keep the order.

    It draws the seeds of its workers when it begins: from a generator of its own, so that how often a run validates
    or goes on does not move the random state that dropout reads.
    """
    return DataLoader(
        RowDataset(rows),
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        generator=torch.Generator(),
        worker_init_fn=die_with_parent,
        pin_memory=collate.device.type == "cuda",
        persistent_workers=False,
    )
