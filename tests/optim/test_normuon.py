"""NorMuon equals its reference, gives rows equal length and preserves the norm."""

from __future__ import annotations

import muon_references as references
import pytest
import torch
from torch import Tensor, nn

from krill.optim.layout import Layout
from krill.optim.muon import Muon
from krill.optim.normuon import init_second_moment, normalize_neurons

SHAPES = [(32, 64), (64, 32), (32, 64), (16, 16)]


def _make_updates(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [references.newton_schulz(torch.randn(shape, generator=generator)) for shape in SHAPES]


def test_normuon_equals_its_reference_over_several_steps():
    moments = [init_second_moment(u, Layout()) for u in _make_updates()]
    seconds = [torch.zeros(rows, 1) for rows, _ in SHAPES]
    for step in range(5):
        actual = normalize_neurons(_make_updates(step), moments, Layout())
        expected = [
            references.normuon(u, second) for u, second in zip(_make_updates(step), seconds, strict=True)
        ]
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(moments, seconds)


@pytest.mark.parametrize("layout", [Layout(), Layout(transposed=True)], ids=["out × in", "in × out"])
def test_neurons_have_equal_length_and_the_norm_is_preserved(layout):
    u = torch.diag(torch.linspace(0.1, 3, 16)) @ references.newton_schulz(torch.randn(16, 40))
    u = u.T.contiguous() if layout.transposed else u
    (normalized,) = normalize_neurons([u], [init_second_moment(u, layout)], layout)
    lengths = normalized.norm(dim=0 if layout.transposed else 1)
    torch.testing.assert_close(lengths, lengths.mean().expand(16))
    torch.testing.assert_close(normalized.norm(), u.norm())


@pytest.mark.parametrize("zero_rows", [slice(None), slice(0, 3)], ids=["all", "some rows"])
def test_zero_updates_stay_zero(zero_rows):
    u = _make_updates()[0]
    u[zero_rows] = 0
    moment = init_second_moment(u, Layout())
    for _ in range(3):
        (normalized,) = normalize_neurons([u], [moment], Layout())
        assert torch.isfinite(normalized).all()
        assert torch.equal(normalized[zero_rows], u[zero_rows])


def test_the_optimizer_applies_normuon_and_stores_its_moment():
    p = nn.Parameter(torch.zeros(32, 64))
    optimizer = Muon([{"params": [p], "kind": "muon", "lr": 1.0, "scale": "spectral", "normuon": True}])
    p.grad = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    moment = torch.zeros(32, 1)
    torch.testing.assert_close(
        -p.detach(), references.normuon(references.newton_schulz(p.grad), moment), rtol=1e-4, atol=1e-6
    )
    torch.testing.assert_close(optimizer.state[p]["second_momentum"], moment, rtol=1e-4, atol=1e-8)
