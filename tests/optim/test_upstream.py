"""krill's Muon equals the Muon of pytorch_optimizer 4.1."""

from __future__ import annotations

import importlib.util
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import muon_references as references
import pytest
import torch
from torch import nn

from krill.optim.muon import Muon

package = pytest.importorskip("pytorch_optimizer")
SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "upstream_muon.py"
SHAPES = [(64, 64), (32, 64), (64, 32), (128, 48)]


@pytest.fixture(scope="module")
def upstream_muon() -> Any:
    spec = importlib.util.spec_from_file_location("upstream_muon", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def fp32_iterations(monkeypatch):
    """Runs the package's Newton–Schulz iterations in fp32, so that the rules are compared and not the rounding."""
    from pytorch_optimizer.optimizer.muon import base

    in_fp32 = partial(base.zero_power_via_newton_schulz_5, dtype=torch.float32)
    monkeypatch.setattr(base, "zero_power_via_newton_schulz_5", in_fp32)


def _make_params() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = [*SHAPES, (50, 16), (16,)]
    return [nn.Parameter(torch.randn(shape, generator=generator) * 0.02) for shape in shapes]


def _make_groups(scale: str) -> list[dict[str, Any]]:
    params = _make_params()
    adamw = {"name": "rest", "kind": "adamw", "lr": 3e-3, "betas": (0.9, 0.95), "eps": 1e-10}
    matrices = {"name": "matrices", "kind": "muon", "lr": 2e-2, "momentum": 0.95, "nesterov": True}
    return [
        {**adamw, "params": params[4:], "weight_decay": 0.1},
        {**matrices, "params": params[:4], "weight_decay": 0.1, "scale": scale},
    ]


def _run(optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(100 + step)
        for group in reversed(optimizer.param_groups):
            group["lr"] *= 0.97
            for p in group["params"]:
                p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


def test_the_installed_version_is_the_one_compared_with():
    assert metadata.version("pytorch_optimizer").startswith("4.1.")


@pytest.mark.parametrize("scale", ["rms", "spectral"])
@pytest.mark.parametrize(("steps", "distance"), [(1, 1e-5), (20, 1e-4)])
def test_krill_muon_equals_the_package(fp32_iterations, upstream_muon, scale, steps, distance):
    ours = Muon(_make_groups(scale))
    theirs = upstream_muon.build_upstream_muon(Muon(_make_groups(scale)).param_groups)
    assert type(theirs) is package.Muon
    initial = _make_params()
    for optimizer in (ours, theirs):
        _run(optimizer, range(steps))
    matrices = [optimizer.param_groups[1]["params"] for optimizer in (ours, theirs)]
    for p, q, start in zip(*matrices, initial, strict=False):
        assert (p - q).norm() / (q - start).norm() <= distance
    rest = [optimizer.param_groups[0]["params"] for optimizer in (ours, theirs)]
    for p, q in zip(*rest, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=2e-7)


def test_the_scales_of_the_package_differ_as_expected():
    """Detects an exchange of the two: before 4.1, use_adjusted_lr had the opposite meaning."""
    factors = []
    for adjusted in (True, False):
        p = nn.Parameter(torch.zeros(256, 64))
        p.grad = torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
        direction = references.newton_schulz(p.grad)
        package.Muon([{"params": [p], "use_muon": True, "use_adjusted_lr": adjusted, "lr": 1.0}]).step()
        factors.append(float(p.detach().norm() / direction.norm()))
    assert factors == [pytest.approx(3.2, rel=1e-2), pytest.approx(2.0, rel=1e-2)]


def test_the_state_of_the_package_resumes_to_the_bit(upstream_muon):
    build = upstream_muon.build_upstream_muon
    uninterrupted = build(Muon(_make_groups("rms")).param_groups)
    _run(uninterrupted, range(6))
    first = build(Muon(_make_groups("rms")).param_groups)
    _run(first, range(3))
    second = build(Muon(_make_groups("rms")).param_groups)
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        for group, before in zip(second.param_groups, first.param_groups, strict=True):
            for p, q in zip(group["params"], before["params"], strict=True):
                p.copy_(q)
    _run(second, range(3, 6))
    for group, expected in zip(second.param_groups, uninterrupted.param_groups, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(group["params"], expected["params"], strict=True))


def test_custom_configurations_can_train_with_the_package(upstream_muon):
    """The quality benchmark trains with it by optimizer=custom."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes))
    optimizer = upstream_muon.build(model, lr=1e-3, betas=(0.9, 0.95))
    assert type(optimizer) is package.Muon
    groups = [group for group in optimizer.param_groups if group["use_muon"]]
    assert [group["use_adjusted_lr"] for group in groups] == [False]
    assert sum(len(group["params"]) for group in groups) == 7
