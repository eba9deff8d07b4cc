"""Rates, gradients and updates of the optimizer's groups, against what the step did to the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from krill.optim.muon import Muon
from krill.runs.record import read_metrics
from krill.training.metrics.optimizer_stats import OptimizerStats


def _params(*shapes: tuple[int, ...]) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def _groups(**options: Any) -> list[dict[str, Any]]:
    return [
        {"name": "vectors", "kind": "adamw", "lr": 0.01, "params": _params((7,), (5, 3)), "weight_decay": 0.0},
        {"name": "head", "kind": "adamw", "lr": 0.02, "params": _params((9, 4)), "weight_decay": 0.0},
        {"name": "matrices", "kind": "muon", "lr": 0.03, "params": _params((8, 6), (6, 8), (4, 4)),
         "weight_decay": 0.0, **options},
    ]  # fmt: skip


def _steps(
    optimizer: torch.optim.Optimizer, count: int
) -> tuple[dict[str, float], dict[str, list[torch.Tensor]]]:
    """Figures of the last of `count` steps, and each group's weights before it."""
    generator = torch.Generator().manual_seed(1)
    before: dict[str, list[torch.Tensor]] = {}
    for _ in range(count):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.randn(p.shape, generator=generator)
            before[group["name"]] = [p.detach().clone() for p in group["params"]]
        seen = OptimizerStats(optimizer)
        optimizer.step()
        figures = seen.collect_metrics()
    return figures, before


@pytest.mark.parametrize(
    "build",
    [
        lambda: Muon(_groups()),
        lambda: Muon(_groups(scale="spectral", normuon=True, cautious=True)),
        lambda: Muon([group | {"eps_before_correction": True, "eps": 1e-3} if group["kind"] == "adamw" else group
                      for group in _groups()]),
        lambda: torch.optim.AdamW(_groups(), foreach=True),
    ],
    ids=["muon", "options", "moonlight's eps", "adamw"],
)  # fmt: skip
def test_update_rms_is_how_far_the_weights_went_over_the_rate(build: Callable[[], torch.optim.Optimizer]):
    optimizer = build()
    figures, before = _steps(optimizer, 4)
    for group in optimizer.param_groups:
        moved = [p.detach() - old for p, old in zip(group["params"], before[group["name"]], strict=True)]
        rms = torch.cat([m.flatten() for m in moved]).square().mean().sqrt().item() / group["lr"]
        assert figures[f"update_rms/{group['name']}"] == pytest.approx(rms, rel=1e-4)
        assert figures[f"lr/{group['name']}"] == group["lr"]


def test_gradient_norms_of_groups_and_of_muon_and_adamw_apart():
    optimizer = Muon(_groups())
    figures, _ = _steps(optimizer, 1)

    def norm(*names: str) -> float:
        of = [p.grad for group in optimizer.param_groups if group["name"] in names for p in group["params"]]
        return math.sqrt(sum(float(grad.double().square().sum()) for grad in of))

    for name in ("vectors", "head", "matrices"):
        assert figures[f"grad_norm/{name}"] == pytest.approx(norm(name), rel=1e-5)
    assert figures["grad_norm/adamw"] == pytest.approx(norm("vectors", "head"), rel=1e-5)
    assert figures["grad_norm/muon"] == pytest.approx(norm("matrices"), rel=1e-5)


def test_an_optimizer_of_ones_own_has_rates_and_gradients():
    params = _params((3, 3))
    params[0].grad = torch.ones(3, 3)
    optimizer = torch.optim.SGD(params, lr=0.5)
    seen = OptimizerStats(optimizer)
    optimizer.step()
    assert seen.collect_metrics() == {"lr/0": 0.5, "grad_norm/0": pytest.approx(3.0)}


def test_a_step_that_is_not_logged_is_not_watched():
    optimizer = Muon(_groups())
    _steps(optimizer, 1)
    assert optimizer.observer is None


def test_the_metrics_of_a_run_hold_them(train_in: Callable[..., Path], make_config: Callable[..., Any]):
    folder = train_in(
        make_config("steps=5", "log_every=2", "optimizer.max_grad_norm=1e-3", "scheduler=constant")
    )
    lines = [line for line in read_metrics(folder) if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 4, 5]
    for line in lines:
        groups = [key.partition("/")[2] for key in line if key.startswith("lr/")]
        assert groups == ["embeddings", "vectors", "matrices"]
        assert 0.1 < line["update_rms/matrices"] < 0.3
        norms = [line[f"grad_norm/{name}"] for name in groups]
        assert math.hypot(*norms) == pytest.approx(line["grad_norm"], rel=1e-4)
        kinds = math.hypot(line["grad_norm/muon"], line["grad_norm/adamw"])
        assert kinds == pytest.approx(line["grad_norm"], rel=1e-4)
        assert line["grad_norm"] > 1e-2  # before clipping
    assert lines[0]["lr/embeddings"] == lines[0]["lr"]


def test_without_clipping_too(train_in: Callable[..., Path], make_config: Callable[..., Any]):
    folder = train_in(make_config("steps=2", "optimizer.max_grad_norm=0", "optimizer=adamw"))
    for line in read_metrics(folder)[:2]:
        assert line["grad_norm/adamw"] == pytest.approx(line["grad_norm"], rel=1e-5)
        assert line["update_rms/matrices"] > 0
