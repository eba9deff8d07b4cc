"""Newton–Schulz: singular values near 1 and correct singular vectors, for inputs of any size and shape."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from krill.optim.newton_schulz import orthogonalize

SHAPES = [(3, 64, 64), (2, 32, 64), (2, 64, 32), (1, 128, 48)]


def _make_gaussian(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _compute_polar_factor(g_BMN: Tensor) -> Tensor:
    u, _, vh = torch.linalg.svd(g_BMN.double(), full_matrices=False)
    return u @ vh


def _relative_error(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("coefficients", "distance"), [("keller", 0.25), ("polar_express", 0.2)])
def test_singular_values_end_near_one(shape, coefficients, distance):
    g_BMN = _make_gaussian(*shape)
    o_BMN = orthogonalize(g_BMN, coefficients=coefficients)
    assert o_BMN.shape == g_BMN.shape
    assert o_BMN.dtype == torch.float32
    values = torch.linalg.svdvals(o_BMN)
    # a square Gaussian matrix has values near 0, which five steps do not raise to 1
    assert ((values > 0.6) & (values < 1.3)).float().mean() > 0.9
    assert values.max() < 1.3
    assert _relative_error(o_BMN, _compute_polar_factor(g_BMN)) < distance


@pytest.mark.parametrize(
    ("coefficients", "steps"),
    [
        *(("keller", steps) for steps in (1, 3, 5, 20)),
        *(("polar_express", steps) for steps in (5, 8, 20)),
    ],
)
def test_any_number_of_steps_stays_bounded(coefficients, steps):
    g_BMN = _make_gaussian(1, 48, 96)
    o_BMN = orthogonalize(g_BMN, steps, coefficients)
    assert torch.linalg.svdvals(o_BMN).max() < 2
    if steps >= 5:
        assert _relative_error(o_BMN, _compute_polar_factor(g_BMN)) < 0.3


@pytest.mark.parametrize("steps", [1, 4])
def test_polar_express_with_too_few_steps_is_rejected(steps):
    with pytest.raises(ValueError, match=f"at least 5 steps, got ns_steps={steps}.*use ns_steps=5"):
        orthogonalize(_make_gaussian(1, 8, 8), steps, "polar_express")


def test_polar_express_is_closer_than_keller_at_equal_steps():
    g_BMN = _make_gaussian(2, 96, 240)
    exact = _compute_polar_factor(g_BMN)
    keller, polar = (
        _relative_error(orthogonalize(g_BMN, 5, name), exact) for name in ("keller", "polar_express")
    )
    assert polar < keller


@pytest.mark.parametrize("coefficients", ["keller", "polar_express"])
def test_transposing_the_input_transposes_the_result(coefficients):
    g_BMN = _make_gaussian(2, 96, 40)
    tall = orthogonalize(g_BMN, coefficients=coefficients)
    assert _relative_error(orthogonalize(g_BMN.mT, coefficients=coefficients), tall.mT) < 1e-5


@pytest.mark.parametrize("size", [1e-15, 1e-12, 1e-6, 1e6, 1e15])
def test_the_result_does_not_depend_on_the_size_of_the_input(size):
    g_BMN = _make_gaussian(2, 32, 64)
    assert _relative_error(orthogonalize(g_BMN * size), orthogonalize(g_BMN)) < 1e-5


@pytest.mark.parametrize("size", [1e-18, 1e-22, 1e-30, 1e-44])
def test_a_vanishing_input_gives_a_bounded_result(size):
    """This is the momentum of a parameter whose gradient stays zero; the squares of its entries underflow first."""
    o_BMN = orthogonalize(_make_gaussian(2, 32, 64) * size)
    assert torch.isfinite(o_BMN).all()
    assert torch.linalg.svdvals(o_BMN).max() < 1.3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_scale_is_a_factor_and_bf16_results_are_bf16_numbers(dtype):
    g_BMN = _make_gaussian(2, 64, 32)
    scaled, plain = orthogonalize(g_BMN, dtype=dtype, scale=1.7), orthogonalize(g_BMN, dtype=dtype)
    assert _relative_error(scaled, 1.7 * plain) < (1e-5 if dtype == torch.float32 else 1e-2)
    assert torch.equal(scaled, scaled.to(dtype).float())


def test_a_zero_matrix_stays_zero_in_a_batch():
    g_BMN = _make_gaussian(2, 32, 64)
    g_BMN[0] = 0
    o_BMN = orthogonalize(g_BMN)
    assert torch.equal(o_BMN[0], torch.zeros(32, 64))
    assert torch.linalg.svdvals(o_BMN[1]).max() > 0.5


def test_the_input_is_not_changed_and_its_dtype_is_returned():
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        g_BMN = _make_gaussian(2, 64, 32).to(dtype)
        before = g_BMN.clone()
        assert orthogonalize(g_BMN).dtype == dtype
        assert torch.equal(g_BMN, before)


def test_arithmetic_is_fp32_on_the_cpu_unless_bf16_is_requested():
    g_BMN = _make_gaussian(1, 64, 128)
    exact = orthogonalize(g_BMN.double(), dtype=torch.float64)
    assert _relative_error(orthogonalize(g_BMN), exact) < 5e-5
    assert 1e-4 < _relative_error(orthogonalize(g_BMN, dtype=torch.bfloat16), exact) < 6e-2


def test_errors_name_the_invalid_argument():
    with pytest.raises(ValueError, match="B × M × N"):
        orthogonalize(torch.eye(4))
    with pytest.raises(ValueError, match="keller or polar_express"):
        orthogonalize(torch.eye(4)[None], coefficients="newton")
