"""Batches of rows of the token store, in an order that is a pure function of (seed, epoch, position)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data._utils import signal_handling

from krill.data.order import row_at
from krill.data.packing import Row, Rows
from krill.data.store import Split
from krill.errors import KrillError
from krill.signals import die_with_parent
from krill.training.batch_shape import BatchShape
from krill.training.compute import attention
from krill.training.compute.context_parallel import cut_rows

COUNT_BLOCK_ROWS = 2**20
"""Rows that are counted at once, which limits the memory."""

EMPTY_ROW = -1
"""Index of a row of padding only: it fills up the last step, so that no token is used twice."""


class RowDataset(Dataset[Row]):
    """The rows of one split, by index."""

    def __init__(self, rows: Rows):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows.make_empty_row() if index == EMPTY_ROW else self.rows.get_row(index)


class RowBatchSampler(Sampler[list[int]]):
    """Batches of row indices for one rank, from the current step to the last.

    Row j of the micro batch of step s, forward pass a and rank r has the global position p = ((s·A + a)·R + r)·M + j
    (A forward passes per step, R ranks, M rows per micro batch), so A, R and M change neither the rows of a step nor
    their order.
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
        """`last`: positions from here on are empty rows; None: the order is endless."""
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
        """Returns the row index at a position of the whole run."""
        if self.last is not None and position >= self.last:
            return EMPTY_ROW
        epoch, position_in_epoch = divmod(position, self.rows)
        return row_at(self.seed, epoch, position_in_epoch, self.rows)

    def get_step_rows(self, step: int) -> list[int]:
        """Returns the rows of a step over all ranks, without the empty rows; steps count from 1."""
        size = self.shape.rows_per_step
        rows = (self.get_row(position) for position in range((step - 1) * size, step * size))
        return [row for row in rows if row != EMPTY_ROW]


class TokenCounter:
    """Counts the tokens of the first rows in the order of training, without padding.

    A count in the same epoch as the last one continues from there: the cost is that of the rows in between.
    """

    def __init__(self, rows: Rows, seed: int):
        self.rows, self.seed = rows, seed
        self.row_tokens = np.add.reduceat(rows.lengths, rows.offsets[:-1])
        self.epoch = self.position = self.tokens_in_epoch = 0

    def count(self, num_rows: int) -> int:
        """Returns the tokens of the rows at positions 0 … `num_rows` - 1 of the whole run."""
        epoch, position = divmod(num_rows, len(self.rows))
        if epoch != self.epoch or position < self.position:
            self.epoch, self.position, self.tokens_in_epoch = epoch, 0, 0
        while self.position < position:
            positions = np.arange(self.position, min(position, self.position + COUNT_BLOCK_ROWS))
            rows = row_at(self.seed, epoch, positions, len(self.rows))
            self.tokens_in_epoch += int(self.row_tokens[rows].sum())
            self.position += len(positions)
        return epoch * self.rows.tokens + self.tokens_in_epoch


@dataclass(frozen=True)
class RowCollator:
    """Collates rows into the model's inputs: int64 tensors (B, T), and the document lengths for the backend."""

    backend: str
    device: torch.device
    part: int = 0
    """The part of each row that this rank trains on, and the number of parts (hardware.context_parallel)."""
    parts: int = 1

    def __call__(self, rows: list[Row]) -> dict[str, Any]:
        lengths = [int(length) for row in rows for length in row.lengths]
        batch = {
            "input_ids": torch.from_numpy(np.stack([row.input_ids for row in rows])),
            "position_ids": torch.from_numpy(np.stack([row.position_ids for row in rows])),
            "labels": torch.from_numpy(np.stack([row.labels for row in rows])),
            **attention.build_boundary_kwargs(self.backend, lengths, len(rows[0].input_ids), self.device),
        }
        return batch if self.parts == 1 else cut_rows(batch, self.part, self.parts)


def map_segments_to_documents(rows: Rows, segments: slice = slice(None)) -> np.ndarray:
    """Returns the index, within the split, of the document of each segment of `rows`; int64 (segments,)."""
    return np.searchsorted(rows.stream.ends, rows.starts[segments].astype(np.uint64), side="right")


def map_segments_to_sources(rows: Rows, split: Split) -> np.ndarray:
    """Returns the source of each segment of `rows`, which are packed from `split`; uint16 (segments,)."""
    return split.sources[map_segments_to_documents(rows)]


def map_tokens_to_sources(rows: Rows, segment_sources: np.ndarray, indices: list[int]) -> torch.Tensor:
    """Returns the source of each token of the rows `indices`; int64 (B, T), 0 for padding."""
    sources = np.zeros((len(indices), rows.sequence_len), dtype=np.int64)
    for position, row in enumerate(indices):
        segments = slice(rows.offsets[row], rows.offsets[row + 1])
        tokens = np.repeat(segment_sources[segments], rows.lengths[segments])
        sources[position, : len(tokens)] = tokens
    return torch.from_numpy(sources)


_LOST_WORKER = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? (?P<pids>[\d, ]+)\) (?:is killed by signal: (?P<signal>[^.]+)|exited)"
)
_LOST_PIN_THREAD = "Pin memory thread exited"
"""Start of torch's message when the thread that receives rows on CUDA has lost the connection to a worker."""
WORKER_END_SECONDS = 2.0
"""Time for a worker to end after the connection to it is lost."""


@contextmanager
def name_lost_workers() -> Iterator[None]:
    """Raises KrillError, not an error of torch or of a connection, when a process that loads rows was killed."""
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        errors: list[BaseException | None] = [error, error.__cause__, error.__context__]
        if not isinstance(error, RuntimeError) or str(error).startswith(_LOST_PIN_THREAD):
            errors.append(_wait_for_worker_failure())
        lost = [match for match in map(_LOST_WORKER.search, map(str, errors)) if match]
        if not lost:
            raise
        signal = next((f"was killed ({match['signal']})" for match in lost if match["signal"]), "ended")
        raise KrillError(
            f"a process that loads rows (process {lost[0]['pids']}) {signal}. If memory is too small, use fewer "
            "hardware.workers, or hardware.workers=0; the same command resumes from the last checkpoint"
        ) from error


def _wait_for_worker_failure() -> RuntimeError | None:
    """Returns torch's error about a killed worker: the connection to it is lost a moment before it has ended."""
    until = time.monotonic() + WORKER_END_SECONDS
    try:
        while time.monotonic() < until:
            signal_handling._error_if_any_worker_fails()
            time.sleep(0.01)  # torch's handler of SIGCHLD may raise here as well
    except RuntimeError as failure:
        return failure
    return None


def build_dataloader(
    rows: Rows, batches: Iterable[list[int]], collate: RowCollator, workers: int
) -> DataLoader[Row]:
    """Returns a DataLoader over `batches`; its workers keep the order.

    A DataLoader draws the seeds of its workers when iteration starts: here from its own generator, so that the number
    of validations or resumes does not change the random state that dropout uses.
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
