"""The order of rows: each row once per epoch, the same for every split of a step and from every step on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data._utils import signal_handling

from krill.data.packing import IGNORE_INDEX, Rows
from krill.errors import KrillError
from krill.training import batches as batches_module
from krill.training.batch_shape import BatchShape
from krill.training.batches import (
    EMPTY_ROW,
    RowBatchSampler,
    RowCollator,
    RowDataset,
    build_dataloader,
    name_lost_workers,
)

ROWS = 37
SPLITS = [
    BatchShape(12, 1),
    BatchShape(4, 3),
    BatchShape(1, 12),
    BatchShape(3, 2, world_size=2),
    BatchShape(2, 2, world_size=3),
    BatchShape(1, 1, 12),
]


def flatten(parts: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(parts))


def list_step_rows(
    shape: BatchShape, steps: int, last: int | None = None, start: int = 0, seed: int = 5
) -> list[list[int]]:
    """Returns the rows of each step from `start` on, over all ranks."""
    ranks = [
        list(RowBatchSampler(ROWS, seed, steps, shape, last, lambda: start, r))
        for r in range(shape.world_size)
    ]
    assert {len(rank) for rank in ranks} == {(steps - start) * shape.accumulation_steps}
    passes = [[row for rank in ranks for row in rank[p]] for p in range(len(ranks[0]))]
    size = shape.accumulation_steps
    return [flatten(passes[first : first + size]) for first in range(0, len(passes), size)]


@pytest.mark.parametrize("shape", [*SPLITS, BatchShape(5, 1), BatchShape(2, 1, 4)], ids=str)
def test_every_row_is_used_once_per_epoch_for_every_split(shape: BatchShape) -> None:
    epochs = 3
    steps = -(-epochs * ROWS // shape.rows_per_step)
    order = flatten(list_step_rows(shape, steps))
    for epoch in range(epochs):
        assert Counter(order[epoch * ROWS : (epoch + 1) * ROWS]) == Counter(range(ROWS))


def test_epochs_and_seeds_have_different_orders() -> None:
    first, second, _ = list_step_rows(BatchShape(ROWS, 1), 3)
    assert first != second
    assert [first] != list_step_rows(BatchShape(ROWS, 1), 1, seed=6)
    assert first != sorted(first)


@pytest.mark.parametrize("shape", SPLITS[1:], ids=str)
def test_split_does_not_change_the_rows_of_a_step(shape: BatchShape) -> None:
    assert list_step_rows(shape, 7) == list_step_rows(SPLITS[0], 7)


@pytest.mark.parametrize("shape", [*SPLITS, BatchShape(5, 1), BatchShape(2, 1, 4)], ids=str)
def test_last_step_is_filled_up_with_empty_rows(shape: BatchShape) -> None:
    steps = -(-ROWS // shape.rows_per_step)
    counts = Counter(flatten(list_step_rows(shape, steps, last=ROWS)))
    empty = counts.pop(EMPTY_ROW, 0)
    assert counts == Counter(range(ROWS))
    assert empty == steps * shape.rows_per_step - ROWS


@pytest.mark.parametrize("shape", [SPLITS[0], SPLITS[3]], ids=str)
def test_order_continues_from_any_step(shape: BatchShape) -> None:
    steps, last = 9, 100  # ends in the third epoch, with empty rows
    expected = list_step_rows(shape, steps, last)
    for start in range(steps + 1):
        assert list_step_rows(shape, steps, last, start) == expected[start:]


def test_current_step_is_read_when_iteration_starts() -> None:
    step = {"now": 0}
    order = RowBatchSampler(ROWS, 0, 4, BatchShape(2, 1), None, lambda: step["now"])
    step["now"] = 3
    assert len(list(order)) == 1
    assert len(order) == 4


def test_empty_row_has_no_labels(make_rows: Callable[..., Rows]) -> None:
    row = RowDataset(make_rows([30, 20], 64))[EMPTY_ROW]
    assert (row.input_ids == 2).all()
    assert (row.labels == IGNORE_INDEX).all()
    assert row.lengths.tolist() == [64]


def test_batch_has_the_rows_and_their_document_lengths(make_rows: Callable[..., Rows]) -> None:
    packed = make_rows([30, 20, 40], 64)
    rows = [packed.get_row(1), packed.get_row(0)]
    batch = RowCollator("varlen", torch.device("cpu"))(rows)
    for key in ("input_ids", "position_ids", "labels"):
        assert batch[key].dtype == torch.int64
        np.testing.assert_array_equal(batch[key], np.stack([getattr(row, key) for row in rows]))
    assert batch["document_lengths"] == [*rows[0].lengths, *rows[1].lengths]


def test_workers_keep_the_order(make_rows: Callable[..., Rows]) -> None:
    rows = make_rows([30, 20, 40, 64, 50, 11, 70], 64)
    order = RowBatchSampler(len(rows), 3, 6, BatchShape(2, 1), len(rows), lambda: 0)

    def read(workers: int) -> list[Any]:
        batches = build_dataloader(rows, order, RowCollator("varlen", torch.device("cpu")), workers)
        return [batch["input_ids"].tolist() for batch in batches]

    assert read(2) == read(0)


@pytest.mark.parametrize(
    ("message", "what"),
    [
        ("DataLoader worker (pid 17) is killed by signal: Killed. ", "process 17) was killed (Killed)"),
        ("DataLoader worker (pid(s) 17, 18) exited unexpectedly", "process 17, 18) ended"),
    ],
)
def test_a_killed_worker_is_named_with_what_to_set(message: str, what: str) -> None:
    """With torch's messages: its handler of SIGCHLD raises in whatever the main thread does, also in pytest."""
    with pytest.raises(KrillError, match=r"hardware\.workers=0.* resumes") as error, name_lost_workers():
        raise RuntimeError(message)
    assert what in str(error.value)
    with pytest.raises(RuntimeError, match="another"), name_lost_workers():
        raise RuntimeError("another")


@pytest.mark.parametrize(
    "error",
    [ConnectionResetError(104), EOFError(), RuntimeError("Pin memory thread exited unexpectedly")],
    ids=repr,
)
def test_a_worker_whose_connection_is_lost_before_it_has_ended_is_named(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks: list[None] = []

    def fail_at_the_second_check() -> None:
        checks.append(None)
        if len(checks) == 2:
            raise RuntimeError("DataLoader worker (pid 17) is killed by signal: Killed. ")

    monkeypatch.setattr(signal_handling, "_error_if_any_worker_fails", fail_at_the_second_check)
    with pytest.raises(KrillError, match=r"process 17\) was killed \(Killed\)"), name_lost_workers():
        raise error


def test_a_connection_that_is_lost_without_a_killed_worker_remains_the_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batches_module, "WORKER_END_SECONDS", 0.0)
    with pytest.raises(ConnectionResetError), name_lost_workers():
        raise ConnectionResetError
