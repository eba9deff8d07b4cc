"""Tests learning rates, gradient norms and update sizes of groups against the change of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from krill.optim.muon import Muon
from krill.runs.json_lines import read_metrics
from krill.training.metrics.optimizer_stats import OptimizerStats


def _make_params(*shapes: tuple[int, ...]) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def _make_groups(**options: Any) -> list[dict[str, Any]]:
    return [
        {"name": "vectors", "kind": "adamw", "lr": 0.01, "params": _make_params((7,), (5, 3)), "weight_decay": 0.0},
        {"name": "head", "kind": "adamw", "lr": 0.02, "params": _make_params((9, 4)), "weight_decay": 0.0},
        {"name": "matrices", "kind": "muon", "lr": 0.03, "params": _make_params((8, 6), (6, 8), (4, 4)),
         "weight_decay": 0.0, **options},
    ]  # fmt: skip


def _run_steps(
    optimizer: torch.optim.Optimizer, count: int
) -> tuple[dict[str, float], dict[str, list[torch.Tensor]]]:
    """Runs `count` steps; returns the metrics of the last one and the weights of each group before it."""
    generator = torch.Generator().manual_seed(1)
    before: dict[str, list[torch.Tensor]] = {}
    for _ in range(count):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.randn(p.shape, generator=generator)
            before[group["name"]] = [p.detach().clone() for p in group["params"]]
        stats = OptimizerStats(optimizer)
        optimizer.step()
        metrics = stats.collect_metrics()
    return metrics, before


@pytest.mark.parametrize(
    "build",
    [
        lambda: Muon(_make_groups()),
        lambda: Muon(_make_groups(scale="spectral", normuon=True, cautious=True)),
        lambda: Muon([group | {"eps_before_correction": True, "eps": 1e-3} if group["kind"] == "adamw" else group
                      for group in _make_groups()]),
        lambda: torch.optim.AdamW(_make_groups(), foreach=True),
    ],
    ids=["muon", "options", "moonlight's eps", "adamw"],
)  # fmt: skip
def test_update_rms_is_the_change_of_the_weights_divided_by_the_learning_rate(
    build: Callable[[], torch.optim.Optimizer],
):
    optimizer = build()
    metrics, before = _run_steps(optimizer, 4)
    for group in optimizer.param_groups:
        moved = [p.detach() - old for p, old in zip(group["params"], before[group["name"]], strict=True)]
        rms = torch.cat([m.flatten() for m in moved]).square().mean().sqrt().item() / group["lr"]
        assert metrics[f"update_rms/{group['name']}"] == pytest.approx(rms, rel=1e-4)
        assert metrics[f"lr/{group['name']}"] == group["lr"]


def test_gradient_norms_of_groups_and_of_each_kind():
    optimizer = Muon(_make_groups())
    metrics, _ = _run_steps(optimizer, 1)

    def norm(*names: str) -> float:
        grads = [
            p.grad for group in optimizer.param_groups if group["name"] in names for p in group["params"]
        ]
        return math.sqrt(sum(float(grad.double().square().sum()) for grad in grads))

    for name in ("vectors", "head", "matrices"):
        assert metrics[f"grad_norm/{name}"] == pytest.approx(norm(name), rel=1e-5)
    assert metrics["grad_norm/adamw"] == pytest.approx(norm("vectors", "head"), rel=1e-5)
    assert metrics["grad_norm/muon"] == pytest.approx(norm("matrices"), rel=1e-5)


def test_a_custom_optimizer_has_learning_rates_and_gradient_norms():
    params = _make_params((3, 3))
    params[0].grad = torch.ones(3, 3)
    optimizer = torch.optim.SGD(params, lr=0.5)
    stats = OptimizerStats(optimizer)
    optimizer.step()
    assert stats.collect_metrics() == {"lr/0": 0.5, "grad_norm/0": pytest.approx(3.0)}


def test_steps_that_are_not_logged_are_not_observed():
    optimizer = Muon(_make_groups())
    _run_steps(optimizer, 1)
    assert optimizer.observer is None


def test_a_run_records_optimizer_stats(train_in: Callable[..., Path], make_config: Callable[..., Any]):
    folder = train_in(
        make_config(
            "steps=5",
            "log_every=2",
            "optimizer.max_grad_norm=1e-3",
            "scheduler=constant",
            "optimizer.lr_embeddings=2",
        )
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
    assert lines[0]["lr/embeddings"] == 2 * lines[0]["lr"]


def test_a_run_without_clipping_records_optimizer_stats(
    train_in: Callable[..., Path], make_config: Callable[..., Any]
):
    folder = train_in(make_config("steps=2", "optimizer.max_grad_norm=0", "optimizer=adamw"))
    for line in read_metrics(folder)[:2]:
        assert line["grad_norm/adamw"] == pytest.approx(line["grad_norm"], rel=1e-5)
        assert line["update_rms/matrices"] > 0
