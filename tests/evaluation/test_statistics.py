"""Intervals cover what they promise, and tests find what is there and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from krill.evaluation.statistics import (
    binomial_p_value,
    bootstrap_ratio,
    compare_accuracies,
    compare_ratios,
    correct_p_values,
)


def test_an_interval_of_a_share_is_that_of_the_binomial_distribution() -> None:
    interval = bootstrap_ratio(np.repeat([1.0, 0.0], [120, 80]))
    half = 1.96 * np.sqrt(0.6 * 0.4 / 200)
    assert interval.value == 0.6
    assert (interval.low, interval.high) == pytest.approx((0.6 - half, 0.6 + half), abs=0.01)


def test_an_interval_of_a_ratio_weighs_items_by_their_size() -> None:
    interval = bootstrap_ratio(np.array([10.0, 300.0]), np.array([10.0, 100.0]))
    assert interval.value == pytest.approx(310 / 110)
    assert (interval.low, interval.high) == pytest.approx((1, 3))


@pytest.mark.parametrize(
    ("successes", "trials", "expected"),
    [(0, 0, 1.0), (5, 10, 1.0), (0, 10, 2 / 1024), (9, 10, 22 / 1024), (400, 1000, 2.73e-10)],
)
def test_binomial_p_values(successes: int, trials: int, expected: float) -> None:
    assert binomial_p_value(successes, trials) == pytest.approx(expected, rel=0.01)


def test_models_that_answer_the_same_items_are_compared_item_by_item() -> None:
    one = np.repeat([True, False], [150, 50])
    other = one.copy()
    other[:12] = False  # a small difference, but always in favor of one
    assert compare_accuracies(one, other) == pytest.approx(2 / 2**12)
    assert compare_accuracies(one, one) == 1.0


def test_ratios_of_the_same_documents_are_compared_document_by_document() -> None:
    random = np.random.default_rng(1)
    sizes = random.uniform(100, 1000, 300)
    one = sizes * random.uniform(1, 3, 300)  # documents differ more than models do
    assert compare_ratios(one, one + sizes * random.normal(0.015, 0.05, 300), sizes) < 0.01
    assert compare_ratios(one, one + sizes * random.normal(0, 0.05, 300), sizes) > 0.05
    assert compare_ratios(one, one, sizes) == 1.0


def test_p_values_of_several_comparisons() -> None:
    assert correct_p_values([0.01, 0.04, 0.03, 0.9]) == pytest.approx([0.04, 0.09, 0.09, 0.9])
    assert correct_p_values([]) == []
