"""Tests that projections in one weight are split and joined, and trained as if each had a separate weight."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from krill.optim.layout import Layout
from krill.optim.muon import Muon

LAYOUTS = {
    "stacked": Layout(parts=(8, 4, 4)),
    "alternating by head": Layout(blocks=4, parts=(2, 2, 2)),
    "groups": Layout(blocks=2, parts=(6, 2, 2)),
    "transposed": Layout(transposed=True, parts=(12, 12)),
    "transposed, alternating by head": Layout(transposed=True, blocks=2, parts=(3, 5)),
    "transposed, one projection": Layout(transposed=True),
    "one projection": Layout(),
}
INPUTS = 10


def _make_weight(layout: Layout, seed: int = 0) -> Tensor:
    outputs = layout.blocks * sum(layout.parts) if layout.parts else 16
    shape = (INPUTS, outputs) if layout.transposed else (outputs, INPUTS)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", LAYOUTS)
def test_join_inverts_split(name):
    layout = LAYOUTS[name]
    w_BRC = torch.stack([_make_weight(layout, 0), _make_weight(layout, 1)])
    projections = layout.split(w_BRC)
    assert [(p.shape[1], p.shape[2]) for p in projections] == layout.shapes(*w_BRC.shape[1:])
    assert torch.equal(layout.join(projections), w_BRC)


def test_split_returns_the_rows_of_each_projection():
    w_BRC = torch.arange(12.0).view(1, 12, 1)
    assert [p.flatten().tolist() for p in Layout(blocks=2, parts=(3, 2, 1)).split(w_BRC)] == [
        [0, 1, 2, 6, 7, 8], [3, 4, 9, 10], [5, 11],
    ]  # fmt: skip
    assert [p.flatten().tolist() for p in Layout(parts=(8, 4)).split(w_BRC)] == [
        list(range(8)), [8, 9, 10, 11],
    ]  # fmt: skip


def test_parts_that_do_not_add_up_to_the_weight_are_rejected():
    with pytest.raises(ValueError, match=r"2 × 3 \+ 4 rows are not the 16 of the weight"):
        Layout(blocks=2, parts=(3, 4)).shapes(16, 10)


@pytest.mark.parametrize("options", [{}, {"normuon": True, "cautious": True}], ids=["plain", "options"])
@pytest.mark.parametrize("scale", ["rms", "spectral"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_fused_weight_trains_like_separate_projections(name, scale, options):
    layout = LAYOUTS[name]
    fused = nn.Parameter(_make_weight(layout))
    separate = [nn.Parameter(p[0].clone()) for p in layout.split(fused.detach()[None])]
    group = {"kind": "muon", "lr": 0.1, "scale": scale, **options}
    optimizers = [
        Muon([{"params": [fused], **group, **layout._asdict()}]),
        Muon([{"params": separate, **group}]),
    ]
    for step in range(3):
        fused.grad = _make_weight(layout, 10 + step)
        for p, grad in zip(separate, layout.split(fused.grad[None]), strict=True):
            p.grad = grad[0].clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(fused.detach(), layout.join([p.detach()[None] for p in separate])[0])
