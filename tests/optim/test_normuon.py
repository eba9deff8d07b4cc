"""NorMuon: its reference, rows that move alike, and a norm that stays."""

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
    random = torch.Generator().manual_seed(seed)
    return [references.newton_schulz(torch.randn(shape, generator=random)) for shape in SHAPES]


def test_it_equals_its_reference_over_steps():
    moments = [init_second_moment(u, Layout()) for u in _make_updates()]
    seconds = [torch.zeros(rows, 1) for rows, _ in SHAPES]
    for step in range(5):
        found = normalize_neurons(_make_updates(step), moments, Layout())
        wanted = [
            references.normuon(u, second) for u, second in zip(_make_updates(step), seconds, strict=True)
        ]
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(moments, seconds)


@pytest.mark.parametrize("layout", [Layout(), Layout(transposed=True)], ids=["out × in", "in × out"])
def test_neurons_move_alike_and_the_norm_stays(layout):
    u = torch.diag(torch.linspace(0.1, 3, 16)) @ references.newton_schulz(torch.randn(16, 40))
    u = u.T.contiguous() if layout.transposed else u
    (found,) = normalize_neurons([u], [init_second_moment(u, layout)], layout)
    lengths = found.norm(dim=0 if layout.transposed else 1)
    torch.testing.assert_close(lengths, lengths.mean().expand(16))
    torch.testing.assert_close(found.norm(), u.norm())


@pytest.mark.parametrize("dead", [slice(None), slice(0, 3)], ids=["all", "some rows"])
def test_zero_updates_stay_zero(dead):
    u = _make_updates()[0]
    u[dead] = 0
    moment = init_second_moment(u, Layout())
    for _ in range(3):
        (found,) = normalize_neurons([u], [moment], Layout())
        assert torch.isfinite(found).all()
        assert torch.equal(found[dead], u[dead])


def test_the_optimizer_applies_it_and_keeps_its_moment():
    p = nn.Parameter(torch.zeros(32, 64))
    optimizer = Muon([{"params": [p], "kind": "muon", "lr": 1.0, "scale": "spectral", "normuon": True}])
    p.grad = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    moment = torch.zeros(32, 1)
    torch.testing.assert_close(
        -p.detach(), references.normuon(references.newton_schulz(p.grad), moment), rtol=1e-4, atol=1e-6
    )
    torch.testing.assert_close(optimizer.state[p]["second_momentum"], moment, rtol=1e-4, atol=1e-8)
