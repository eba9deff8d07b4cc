"""The order of rows: each once an epoch, the same for any split of a step, from any step on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch

from krill.data.packing import IGNORE_INDEX, Rows
from krill.training.batch_shape import BatchShape
from krill.training.batches import EMPTY_ROW, RowBatchSampler, RowCollator, RowDataset, build_dataloader

ROWS = 37
SPLITS = [
    BatchShape(12, 1),
    BatchShape(4, 3),
    BatchShape(1, 12),
    BatchShape(3, 2, world_size=2),
    BatchShape(2, 2, world_size=3),
    BatchShape(1, 1, 12),
]


def flat(parts: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(parts))


def served(
    shape: BatchShape, steps: int, last: int | None = None, start: int = 0, seed: int = 5
) -> list[list[int]]:
    """The rows of each step from `start` on, all ranks together."""
    ranks = [
        list(RowBatchSampler(ROWS, seed, steps, shape, last, lambda: start, r))
        for r in range(shape.world_size)
    ]
    assert {len(rank) for rank in ranks} == {(steps - start) * shape.accumulation_steps}
    passes = [[row for rank in ranks for row in rank[p]] for p in range(len(ranks[0]))]
    size = shape.accumulation_steps
    return [flat(passes[first : first + size]) for first in range(0, len(passes), size)]


@pytest.mark.parametrize("shape", [*SPLITS, BatchShape(5, 1), BatchShape(2, 1, 4)], ids=str)
def test_every_row_is_served_once_an_epoch_whatever_the_split(shape: BatchShape) -> None:
    epochs = 3
    steps = -(-epochs * ROWS // shape.rows_per_step)
    order = flat(served(shape, steps))
    for epoch in range(epochs):
        assert Counter(order[epoch * ROWS : (epoch + 1) * ROWS]) == Counter(range(ROWS))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    first, second, _ = served(BatchShape(ROWS, 1), 3)
    assert first != second
    assert [first] != served(BatchShape(ROWS, 1), 1, seed=6)
    assert first != sorted(first)


@pytest.mark.parametrize("shape", SPLITS[1:], ids=str)
def test_the_split_changes_no_step(shape: BatchShape) -> None:
    assert served(shape, 7) == served(SPLITS[0], 7)


@pytest.mark.parametrize("shape", [*SPLITS, BatchShape(5, 1), BatchShape(2, 1, 4)], ids=str)
def test_a_ragged_end_serves_every_row_once_and_then_empty_rows(shape: BatchShape) -> None:
    steps = -(-ROWS // shape.rows_per_step)
    counted = Counter(flat(served(shape, steps, last=ROWS)))
    empty = counted.pop(EMPTY_ROW, 0)
    assert counted == Counter(range(ROWS))
    assert empty == steps * shape.rows_per_step - ROWS


@pytest.mark.parametrize("shape", [SPLITS[0], SPLITS[3]], ids=str)
def test_from_any_step_the_same_sequence_goes_on(shape: BatchShape) -> None:
    steps, last = 9, 100  # the third epoch has begun, and ends in empty rows
    whole = served(shape, steps, last)
    for start in range(steps + 1):
        assert served(shape, steps, last, start) == whole[start:]


def test_the_current_step_is_asked_when_reading_begins() -> None:
    step = {"now": 0}
    order = RowBatchSampler(ROWS, 0, 4, BatchShape(2, 1), None, lambda: step["now"])
    step["now"] = 3
    assert len(list(order)) == 1
    assert len(order) == 4


def test_the_empty_row_has_nothing_to_learn(make_rows: Callable[..., Rows]) -> None:
    row = RowDataset(make_rows([30, 20], 64))[EMPTY_ROW]
    assert (row.input_ids == 2).all()
    assert (row.labels == IGNORE_INDEX).all()
    assert row.lengths.tolist() == [64]


def test_a_batch_holds_rows_and_the_lengths_of_their_documents(make_rows: Callable[..., Rows]) -> None:
    made = make_rows([30, 20, 40], 64)
    chosen = [made.get_row(1), made.get_row(0)]
    batch = RowCollator("varlen", torch.device("cpu"))(chosen)
    for key in ("input_ids", "position_ids", "labels"):
        assert batch[key].dtype == torch.int64
        np.testing.assert_array_equal(batch[key], np.stack([getattr(row, key) for row in chosen]))
    assert batch["document_lengths"] == [*chosen[0].lengths, *chosen[1].lengths]


def test_workers_keep_the_order(make_rows: Callable[..., Rows]) -> None:
    made = make_rows([30, 20, 40, 64, 50, 11, 70], 64)
    order = RowBatchSampler(len(made), 3, 6, BatchShape(2, 1), len(made), lambda: 0)

    def read(workers: int) -> list[Any]:
        batches = build_dataloader(made, order, RowCollator("varlen", torch.device("cpu")), workers)
        return [batch["input_ids"].tolist() for batch in batches]

    assert read(2) == read(0)
