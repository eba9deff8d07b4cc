"""Tests that the order of rows is a pinned, uniformly distributed permutation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krill.data.order import row_at


@settings(deadline=None)
@given(st.integers(0, 2**70), st.integers(0, 1000), st.integers(1, 3000))
def test_order_is_a_permutation(seed: int, epoch: int, rows: int) -> None:
    order = row_at(seed, epoch, np.arange(rows), rows)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(rows))


@settings(deadline=None)
@given(st.integers(0, 2**64), st.integers(0, 9), st.integers(1, 10**12), st.data())
def test_single_positions_equal_the_array(seed: int, epoch: int, rows: int, data: st.DataObject) -> None:
    positions = data.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=20))
    rows_of_array = row_at(seed, epoch, np.array(positions), rows)
    assert [row_at(seed, epoch, position, rows) for position in positions] == rows_of_array.tolist()
    assert rows_of_array.max() < rows


def test_order_differs_between_epochs_and_seeds() -> None:
    positions = np.arange(1000)
    orders = [row_at(seed, epoch, positions, 1000) for seed in range(4) for epoch in range(4)]
    for index, order in enumerate(orders):
        for other in orders[:index]:
            assert (order == other).sum() < 15  # two random orders have 1 in expectation


def test_order_has_no_correlation() -> None:
    rows = 100_003
    order = row_at(0, 0, np.arange(rows), rows)
    assert abs(np.corrcoef(order, np.arange(rows))[0, 1]) < 0.02
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.02
    assert (np.abs(np.diff(order)) == 1).sum() < 20  # 2 are expected


def test_every_row_is_at_every_position_equally_often() -> None:
    rows, seeds = 10, 4000
    counts = np.zeros((rows, rows))
    for seed in range(seeds):
        counts[np.arange(rows), [row_at(seed, 0, position, rows) for position in range(rows)]] += 1
    expected = seeds / rows
    assert ((counts - expected) ** 2 / expected).sum() < 150  # chi-squared, 81 degrees of freedom: p < 1e-5


def test_order_is_pinned() -> None:
    """With another order a resumed run would see some rows twice and miss others."""
    assert row_at(0, 0, np.arange(10), 10).tolist() == [4, 9, 3, 2, 8, 1, 5, 0, 6, 7]
    assert [row_at(17, 3, position, 10**12) for position in range(3)] == [
        578974294599,
        867219733959,
        910837518727,
    ]


@pytest.mark.parametrize("position", [-1, 10, np.array([0, 10]), np.array([-1])])
def test_positions_outside_raise(position: int | np.ndarray) -> None:
    with pytest.raises(IndexError, match="of 10 rows"):
        row_at(0, 0, position, 10)
