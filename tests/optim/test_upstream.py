"""backend: upstream, the published package behind a preset, or why there is none."""

from __future__ import annotations

import sys
from functools import partial
from importlib import metadata
from typing import Any

import muon_references as references
import pytest
import torch
from optimizer_sections import muon
from torch import nn

from krill.errors import KrillError, UsageError
from krill.optim.muon import Muon
from krill.optim.upstream import build_upstream

package = pytest.importorskip("pytorch_optimizer")
SHAPES = [(64, 64), (32, 64), (64, 32), (128, 48)]


@pytest.fixture
def fp32(monkeypatch):
    """The package's Newton–Schulz in fp32, so that what is compared is the rule and not the rounding."""
    from pytorch_optimizer.optimizer.muon import base

    exact = partial(base.zero_power_via_newton_schulz_5, dtype=torch.float32)
    monkeypatch.setattr(base, "zero_power_via_newton_schulz_5", exact)


def _params() -> list[nn.Parameter]:
    random = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=random) * 0.02) for shape in [*SHAPES, (50, 16), (16,)]]


def _groups(scale: str) -> list[dict[str, Any]]:
    params = _params()
    adamw = {"name": "rest", "kind": "adamw", "lr": 3e-3, "betas": (0.9, 0.95), "eps": 1e-10}
    matrices = {"name": "matrices", "kind": "muon", "lr": 2e-2, "momentum": 0.95, "nesterov": True}
    return [
        {**adamw, "params": params[4:], "weight_decay": 0.1},
        {**matrices, "params": params[:4], "weight_decay": 0.1, "scale": scale},
    ]


def _run(optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        random = torch.Generator().manual_seed(100 + step)
        for group in reversed(optimizer.param_groups):
            group["lr"] *= 0.97
            for p in group["params"]:
                p.grad = torch.randn(p.shape, generator=random)
        optimizer.step()


@pytest.mark.parametrize("scale", ["rms", "spectral"])
@pytest.mark.parametrize(("steps", "distance"), [(1, 1e-5), (20, 1e-4)])
def test_krills_own_core_equals_it(fp32, scale, steps, distance):
    ours = Muon(_groups(scale))
    theirs = build_upstream(Muon(_groups(scale)).param_groups, muon("muon_pto", scale=scale))
    assert type(theirs) is package.Muon
    start = _params()
    for optimizer in (ours, theirs):
        _run(optimizer, range(steps))
    for p, q, s in zip(ours.param_groups[1]["params"], theirs.param_groups[1]["params"], start, strict=False):
        assert (p - q).norm() / (q - s).norm() <= distance
    for p, q in zip(ours.param_groups[0]["params"], theirs.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=2e-7)


def test_its_two_scales_differ_as_they_should():
    """The canary: before 4.1 use_adjusted_lr meant its opposite."""
    sizes = []
    for adjusted in (True, False):
        p = nn.Parameter(torch.zeros(256, 64))
        p.grad = torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
        direction = references.newton_schulz(p.grad)
        package.Muon([{"params": [p], "use_muon": True, "use_adjusted_lr": adjusted, "lr": 1.0}]).step()
        sizes.append(float(p.detach().norm() / direction.norm()))
    assert sizes == [pytest.approx(3.2, rel=1e-2), pytest.approx(2.0, rel=1e-2)]


def test_a_package_with_the_scales_exchanged_is_refused(monkeypatch):
    class Exchanged(package.Muon):
        def __init__(self, groups: list[dict[str, Any]]):
            super().__init__([{**g, "use_adjusted_lr": not g.get("use_adjusted_lr")} for g in groups])

    monkeypatch.setattr(package, "Muon", Exchanged)
    with pytest.raises(KrillError, match=r"0\.625-fold and not 1\.6-fold.*backend=krill"):
        build_upstream(Muon(_groups("rms")).param_groups, muon("muon_pto"))


@pytest.mark.parametrize("version", ["3.9.0", "4.0.0", "4.2.0"])
def test_another_version_is_refused(monkeypatch, version):
    monkeypatch.setattr(metadata, "version", lambda name: version)
    with pytest.raises(UsageError, match=f"here is {version}.*4\\.1"):
        build_upstream(Muon(_groups("rms")).param_groups, muon("muon_pto"))


def test_a_missing_package_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(UsageError, match=r"pip install 'krill\[upstream\]'"):
        build_upstream(Muon(_groups("rms")).param_groups, muon("muon_pto"))


@pytest.mark.parametrize(("name", "reason"), [("muon_keller", "closure"), ("muon_moonlight", "no package")])
def test_presets_without_a_package_say_what_is_equal(name, reason):
    with pytest.raises(UsageError, match=f"{reason}.*optimizer=muon_pto optimizer.backend=upstream"):
        build_upstream(Muon(_groups("rms")).param_groups, muon(name))


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"cautious": True}, "optimizer.cautious=true"),
        ({"normuon": True}, "optimizer.normuon=true"),
        ({"ns_dtype": "fp32"}, "optimizer.ns_dtype=fp32"),
        ({"eps_before_correction": True}, "optimizer.eps_before_correction=true"),
    ],
)
def test_what_it_cannot_do_is_refused(options, key):
    with pytest.raises(UsageError, match=f"{key}.*backend=krill"):
        build_upstream(Muon(_groups("rms")).param_groups, muon("muon_pto", **options))


def test_fused_projections_are_refused():
    groups = Muon(_groups("rms")).param_groups
    groups[1] |= {"name": "qkv_proj", "parts": (16, 16)}
    with pytest.raises(UsageError, match="matrices of qkv_proj as one projection"):
        build_upstream(groups, muon("muon_pto"))


def test_its_state_resumes_to_the_bit():
    straight = build_upstream(Muon(_groups("rms")).param_groups, muon("muon_pto", scale="rms"))
    _run(straight, range(6))
    first = build_upstream(Muon(_groups("rms")).param_groups, muon("muon_pto", scale="rms"))
    _run(first, range(3))
    second = build_upstream(Muon(_groups("rms")).param_groups, muon("muon_pto", scale="rms"))
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        for group, before in zip(second.param_groups, first.param_groups, strict=True):
            for p, q in zip(group["params"], before["params"], strict=True):
                p.copy_(q)
    _run(second, range(3, 6))
    for group, wanted in zip(second.param_groups, straight.param_groups, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(group["params"], wanted["params"], strict=True))
