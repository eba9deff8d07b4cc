"""Intervals cover what they promise, and tests find what is there and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from krill.evaluation.statistics import (
    binomial_p_value,
    bootstrap_ratio,
    compare_accuracies,
    compare_ratios,
    compare_seeds,
    correct_p_values,
    measure_spread,
    t_test_p_value,
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
    assert correct_p_values([0.01, 0.04], comparisons=6) == pytest.approx([0.06, 0.2])


def test_p_values_beyond_the_number_of_resamples_are_those_of_a_normal_distribution() -> None:
    """Of 40 models there are 780 pairs, for which one in the number of resamples would never suffice."""
    sizes = np.ones(100)
    differences = np.linspace(-1, 3, 100)  # 8.5 standard errors
    assert 0 < compare_ratios(differences, np.zeros(100), sizes) < 1e-12


@pytest.mark.parametrize("documents", [1, 2, 3, 5])
def test_few_documents_do_not_tell_which_model_is_better(documents: int) -> None:
    """The resamples of a single document are all alike, and those of a few that favor one model favor it too."""
    sizes = np.full(documents, 100.0)
    assert compare_ratios(2 * sizes, sizes, sizes) == pytest.approx(2.0 ** (1 - documents))
    assert compare_ratios(sizes * np.arange(2, 2 + documents), sizes, sizes) > 0.05


@pytest.mark.parametrize(
    ("t", "degrees", "expected"),
    [(12.706, 1, 0.05), (-4.303, 2, 0.05), (2.776, 4, 0.05), (1.96, 1e6, 0.05), (0, 3, 1), (63.657, 1, 0.01)],
)
def test_p_values_of_students_t(t: float, degrees: float, expected: float) -> None:
    assert t_test_p_value(t, degrees) == pytest.approx(expected, rel=1e-3)


def test_the_spread_of_seeds_is_split_into_items_and_the_rest() -> None:
    random = np.random.default_rng(1)
    items = random.normal(0, 1, 400)
    noise = random.normal(0, 0.5, (60, 400))
    spread = measure_spread(items + noise)
    assert spread.deviation == pytest.approx(0.5 / 20, rel=0.25)
    assert spread.item_share > 0.8
    spread = measure_spread(items + noise + random.normal(0, 0.1, (60, 1)))
    assert spread.deviation == pytest.approx(0.103, rel=0.25)
    assert spread.item_share < 0.12
    assert measure_spread(items[None]).variance == 0


@pytest.mark.parametrize(("seeds", "other_seeds"), [(3, 3), (7, 2), (7, 1)])
def test_configurations_that_are_the_same_seldom_differ(seeds: int, other_seeds: int) -> None:
    random = np.random.default_rng(3)

    def draw(count: int) -> np.ndarray:
        return items + random.normal(0, 0.1, (count, 1)) + random.normal(0, 0.5, (count, 50))

    rejected = 0
    for _ in range(200):
        items = random.normal(0, 1, 50)
        rejected += compare_seeds(draw(seeds), draw(other_seeds)) < 0.05
    assert rejected <= 20
    assert compare_seeds(draw(seeds) + 1, draw(other_seeds)) < 0.05


@pytest.mark.parametrize("values", [[0, 1], [0, 0.5, 1]])
def test_intervals_of_few_values_are_those_of_resampled_items(values: list[float]) -> None:
    numerators = np.random.default_rng(0).choice(
        values, 300, p=[0.2] * (len(values) - 1) + [1.2 - 0.2 * len(values)]
    )
    fast, slow = bootstrap_ratio(numerators), bootstrap_ratio(numerators, np.ones(300))
    assert fast.value == pytest.approx(slow.value)
    assert fast.low == pytest.approx(slow.low, abs=0.005)
    assert fast.high == pytest.approx(slow.high, abs=0.005)
