"""Muon compared with restatements of its two references, and the contract of a torch optimizer."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import muon_references as references
import pytest
import torch
from torch import Tensor

from krill.optim import muon
from krill.optim.muon import Muon

SHAPES = [(64, 64), (32, 64), (64, 32), (128, 48)]
RATES = [2e-2 * (1 - 0.04 * step) for step in range(20)]
DECAY = 0.1


def _make_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _make_parameters(shapes: list[tuple[int, ...]]) -> list[Tensor]:
    generator = _make_generator()
    return [torch.nn.Parameter(torch.randn(*shape, generator=generator) * 0.02) for shape in shapes]


def _build_mixed_muon(**options: Any) -> tuple[Muon, list[Tensor]]:
    params = _make_parameters([*SHAPES, (50, 16), (16,)])
    groups = [
        {"params": params[:4], "kind": "muon", "lr": 2e-2, "weight_decay": 0.01, **options},
        {"params": params[4:], "kind": "adamw", "lr": 3e-3},
    ]
    return Muon(groups), params


def _fill_gradients(params: list[Tensor], step: int, size: float = 1e-2) -> None:
    generator = _make_generator(100 + step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator) * size


def _run_steps(optimizer: Muon, params: list[Tensor], steps: range, size: float = 1e-2) -> None:
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = RATES[step]
        _fill_gradients(params, step, size)
        optimizer.step()


def _compute_update_error(actual: list[Tensor], expected: list[Tensor], initial: list[Tensor]) -> float:
    """Returns the largest relative Frobenius error of the cumulative update."""
    return max(
        float(((a - b).norm() / (b - c).norm()).detach())
        for a, b, c in zip(actual, expected, initial, strict=True)
    )


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize(
    ("scale", "reference"), [("spectral", references.keller), ("rms", references.moonlight)]
)
def test_each_scale_equals_its_reference(scale, reference, nesterov):
    params = _make_parameters(SHAPES)
    initial = [p.detach().clone() for p in params]
    expected = [p.detach().clone() for p in params]
    states: list[dict] = [{} for _ in expected]
    group = {"params": params, "kind": "muon", "lr": 1.0, "weight_decay": DECAY, "momentum": 0.95}
    optimizer = Muon([{**group, "scale": scale, "nesterov": nesterov, "ns_dtype": "fp32"}])
    for step in range(20):
        _run_steps(
            optimizer, params, range(step, step + 1), size=1.0
        )  # makes the reference's 1e-7 negligible
        for p, q, state in zip(params, expected, states, strict=True):
            reference(q, p.grad, state, RATES[step], DECAY, nesterov)
        if step == 0:
            assert _compute_update_error(params, expected, initial) <= 1e-5
    assert _compute_update_error(params, expected, initial) <= 1e-4


@pytest.mark.parametrize("size", [1.0, 1e-3])
@pytest.mark.parametrize(
    ("reference", "eps", "before"),
    [(references.keller_adam, 1e-10, False), (references.moonlight_adam, 1e-8, True)],
)
def test_adamw_groups_equal_the_auxiliary_adam_of_the_references(reference, eps, before, size):
    params = _make_parameters([(50, 16), (16,)])
    expected = [p.detach().clone() for p in params]
    states: list[dict] = [{} for _ in expected]
    group = {"params": params, "kind": "adamw", "lr": 1.0, "weight_decay": DECAY}
    optimizer = Muon([{**group, "betas": references.BETAS, "eps": eps, "eps_before_correction": before}])
    for step in range(20):
        for param_group in optimizer.param_groups:
            param_group["lr"] = 1e-3 * RATES[step] / RATES[0]
        _fill_gradients(params, step, size)
        if step in (1, 4):
            params[1].grad = None  # gives it a different step count
        optimizer.step()
        for p, q, state in zip(params, expected, states, strict=True):
            if p.grad is not None:
                reference(q, p.grad, state, 1e-3 * RATES[step] / RATES[0], DECAY, eps)
    for p, q in zip(params, expected, strict=True):
        torch.testing.assert_close(p.detach(), q, rtol=0, atol=2e-7)


def test_update_scales():
    assert (
        muon.compute_update_scale("rms", 48, 100)
        == muon.compute_update_scale("rms", 100, 48)
        == pytest.approx(2.0)
    )
    assert muon.compute_update_scale("spectral", 400, 100) == pytest.approx(2.0)
    assert muon.compute_update_scale("spectral", 100, 400) == 1.0


@pytest.mark.parametrize("size", [1e-2, 1e-6])
@pytest.mark.parametrize("eps", [1e-8, 1e-10])
def test_adamw_groups_equal_torch_adamw(eps, size):
    params, expected = (
        _make_parameters([(50, 16), (16,), (3, 4, 5)]),
        _make_parameters([(50, 16), (16,), (3, 4, 5)]),
    )
    options = {"lr": 1.0, "betas": (0.9, 0.95), "eps": eps, "weight_decay": 0.1}
    _run_steps(Muon([{"params": params, "kind": "adamw", **options}]), params, range(20), size)
    _run_steps(torch.optim.AdamW(expected, foreach=False, **options), expected, range(20), size)
    for p, q in zip(params, expected, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=2e-7)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ns_dtype": "bf16"},
        {"cautious": True, "normuon": True, "nesterov": False, "ns_coefficients": "polar_express"},
    ],
    ids=["defaults", "bf16", "options"],
)
def test_resume_is_exact_to_the_bit(options):
    uninterrupted, expected = _build_mixed_muon(**options)
    _run_steps(uninterrupted, expected, range(10))

    first, params = _build_mixed_muon(**options)
    _run_steps(first, params, range(5))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second, resumed = _build_mixed_muon(**options)
    with torch.no_grad():
        for p, q in zip(resumed, params, strict=True):
            p.copy_(q)
    second.load_state_dict(state_dict=torch.load(file, weights_only=True))
    _run_steps(second, resumed, range(5, 10))
    assert all(torch.equal(p, q) for p, q in zip(resumed, expected, strict=True))


def test_state_consists_of_fp32_tensors_with_the_usual_names_even_after_loading_bf16():
    optimizer, params = _build_mixed_muon(normuon=True)
    _run_steps(optimizer, params, range(1))
    saved = optimizer.state_dict()
    for state in saved["state"].values():
        state.update({key: value.bfloat16() for key, value in state.items() if key != "step"})
    optimizer.load_state_dict(saved)
    assert all(value.dtype == torch.float32 for state in optimizer.state.values() for value in state.values())
    assert set(optimizer.state[params[0]]) == {"momentum_buffer", "second_momentum"}
    assert optimizer.state[params[1]]["second_momentum"].shape == (32, 1)
    assert set(optimizer.state[params[4]]) == {"exp_avg", "exp_avg_sq", "step"}


def test_parameters_of_a_group_can_be_replaced():
    optimizer, params = _build_mixed_muon()
    _run_steps(optimizer, params, range(1))
    replacements = [torch.nn.Parameter(p.detach().clone()) for p in params]
    optimizer.param_groups[0]["params"], optimizer.param_groups[1]["params"] = (
        replacements[:4],
        replacements[4:],
    )
    _run_steps(optimizer, replacements, range(1, 2))
    assert all(not torch.equal(p, q) for p, q in zip(params, replacements, strict=True))


@pytest.mark.parametrize("nesterov", [True, False])
def test_gradients_are_not_changed_and_momentum_is_their_moving_average(nesterov):
    optimizer, params = _build_mixed_muon()
    optimizer.param_groups[0]["nesterov"] = nesterov
    _fill_gradients(params, 0)
    before = [p.grad.clone() for p in params]
    optimizer.step()
    assert all(torch.equal(p.grad, g) for p, g in zip(params, before, strict=True))
    for p, g in zip(params[:4], before[:4], strict=True):
        torch.testing.assert_close(optimizer.state[p]["momentum_buffer"], 0.05 * g, rtol=1e-6, atol=0)


@pytest.mark.parametrize("options", [{}, {"cautious": True, "normuon": True}], ids=["defaults", "options"])
def test_a_zero_gradient_only_decays(options):
    optimizer, params = _build_mixed_muon(**options)
    initial = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p, q, group in zip(params, initial, [0, 0, 0, 0, 1, 1], strict=True):
        options = optimizer.param_groups[group]
        torch.testing.assert_close(p.detach(), q * (1 - options["lr"] * options["weight_decay"]))


def test_a_parameter_without_a_gradient_is_not_changed():
    optimizer, params = _build_mixed_muon()
    _fill_gradients(params, 0)
    params[1].grad = params[4].grad = None
    initial = [p.detach().clone() for p in params]
    optimizer.step()
    unchanged = [torch.equal(p, q) for p, q in zip(params, initial, strict=True)]
    assert unchanged == [False, True, False, False, True, False]
    assert params[1] not in optimizer.state
    assert params[4] not in optimizer.state


def test_updates_of_matrices_do_not_depend_on_the_size_of_the_gradient():
    results = []
    for size in (1e-2, 1e-11):
        optimizer, params = _build_mixed_muon()
        initial = [p.detach().clone() for p in params[:4]]
        _run_steps(optimizer, params, range(3), size)
        results.append(params[:4])
    assert _compute_update_error(results[1], results[0], initial) <= 1e-5


@pytest.mark.parametrize("elements", [1, 2 * 32 * 64, 1 << 24])
def test_batches_equal_single_matrices(monkeypatch, elements):
    shapes = [(32, 64), (64, 32), (48, 48), (32, 64), (48, 48), (64, 32), (32, 64)]
    initial, expected = _make_parameters(shapes), _make_parameters(shapes)
    singles = Muon([{"params": [p], "kind": "muon", "lr": 1.0, "scale": "spectral"} for p in expected])
    _run_steps(singles, expected, range(5))

    monkeypatch.setattr(muon, "MAX_BATCH_ELEMENTS", elements)
    params = _make_parameters(shapes)
    _run_steps(Muon([{"params": params, "kind": "muon", "lr": 1.0, "scale": "spectral"}]), params, range(5))
    assert _compute_update_error(params, expected, initial) <= 1e-5


def test_cautious_decays_weights_whose_update_has_the_same_sign():
    """Chen et al. 2025: p ← p − lr·(u + λ·p·[u·p ≥ 0]), with p before the update."""
    plain, updated = _build_mixed_muon(weight_decay=0.0)
    cautious, params = _build_mixed_muon(weight_decay=0.5, cautious=True)
    initial = [p.detach().clone() for p in params]
    _run_steps(plain, updated, range(1))
    _run_steps(cautious, params, range(1))
    for p, u, q in zip(params[:4], updated[:4], initial[:4], strict=True):
        aligned = (q - u.detach()) * q >= 0
        assert 0.2 < aligned.float().mean() < 0.8
        torch.testing.assert_close(p.detach(), u.detach() - RATES[0] * 0.5 * q * aligned)


def test_bf16_iterations_stay_close():
    results = []
    for dtype in ("fp32", "bf16"):
        params = _make_parameters(SHAPES)
        _run_steps(Muon([{"params": params, "kind": "muon", "lr": 1.0, "ns_dtype": dtype}]), params, range(5))
        results.append(params)
    assert 1e-4 < _compute_update_error(results[1], results[0], _make_parameters(SHAPES)) <= 6e-2


def test_the_closure_is_positional_or_a_keyword():
    optimizer, params = _build_mixed_muon()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = sum(p.square().sum() for p in params)
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert optimizer.step(closure=closure) < first


def test_the_optimizer_can_be_copied_and_pickled():
    optimizer, params = _build_mixed_muon()
    _run_steps(optimizer, params, range(1))
    for clone in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert [group["kind"] for group in clone.param_groups] == ["muon", "adamw"]
        _run_steps(clone, [p for group in clone.param_groups for p in group["params"]], range(1, 2))


@pytest.mark.parametrize(
    ("group", "error", "message"),
    [
        ({"lr": 1e-3}, ValueError, "kind"),
        ({"kind": "muon"}, ValueError, "lr"),
        ({"kind": "muon", "lr": 1e-3, "momentums": 0.9}, ValueError, "momentums"),
        ({"kind": "adamw", "lr": 1e-3, "momentum": 0.9}, ValueError, "momentum"),
        ({"kind": "muon", "lr": 1e-3, "scale": "adjusted"}, ValueError, "rms or spectral"),
        ({"kind": "muon", "lr": 1e-3, "ns_coefficients": "x"}, ValueError, "keller or polar_express"),
        (
            {"kind": "muon", "lr": 1e-3, "ns_coefficients": "polar_express", "ns_steps": 4},
            ValueError,
            "use ns_steps=5",
        ),
        (
            {"kind": "muon", "lr": 1e-3, "blocks": 2, "parts": (1, 2)},
            ValueError,
            "2 × 1 \\+ 2 rows are not the 4",
        ),
    ],
)
def test_an_invalid_group_is_rejected_and_not_added(group, error, message):
    optimizer, _ = _build_mixed_muon()
    with pytest.raises(error, match=message):
        optimizer.add_param_group({"params": _make_parameters([(4, 4)]), **group})
    assert len(optimizer.param_groups) == 2


@pytest.mark.parametrize(
    ("parameter", "error", "message"),
    [
        (torch.zeros(4), ValueError, "2-D"),
        (torch.zeros(2, 4, 4), ValueError, "2-D"),
        (torch.zeros(4, 4, dtype=torch.bfloat16), TypeError, "fp32"),
        (torch.zeros(4, 4, dtype=torch.complex64), TypeError, "fp32"),
    ],
)
def test_unsupported_parameters_are_rejected(parameter, error, message):
    with pytest.raises(error, match=message):
        Muon([{"params": [torch.nn.Parameter(parameter)], "kind": "muon", "lr": 1e-3}])


def test_sparse_gradients_are_rejected():
    embedding = torch.nn.Embedding(10, 4, sparse=True)
    optimizer = Muon([{"params": embedding.parameters(), "kind": "adamw", "lr": 1e-3}])
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match="dense"):
        optimizer.step()
