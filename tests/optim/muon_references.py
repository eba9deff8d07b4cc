"""The update rules of krill's references for Muon, restated in a few lines, in fp32.

keller      KellerJordan/Muon, muon.py, SingleDeviceMuonWithAuxAdam (MIT License, Copyright (c) 2024 Keller Jordan)
moonlight   MoonshotAI/Moonlight, examples/toy_train.py (MIT License, Copyright (c) 2025 Moonshot AI)
normuon     zichongli5/NorMuon, normuon.py, one update (Li et al. 2025)

Each updates the parameter and its state in place; `step` is counted from 1. Gradients are not changed, unlike in
Keller's.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

MOMENTUM, BETAS = 0.95, (0.9, 0.95)


def newton_schulz(g: Tensor) -> Tensor:
    """zeropower_via_newtonschulz5, which all of them use, in fp32 instead of bf16."""
    x = g.mT if g.size(0) > g.size(1) else g
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if g.size(0) > g.size(1) else x


def keller(
    p: Tensor, g: Tensor, state: dict[str, Any], lr: float, decay: float, nesterov: bool = True
) -> None:
    """Average momentum, scale √max(1, rows / columns)."""
    buf = state.setdefault("buf", p.new_zeros(p.shape))
    buf.lerp_(g, 1 - MOMENTUM)
    o = newton_schulz(g.lerp(buf, MOMENTUM) if nesterov else buf)
    p.mul_(1 - lr * decay).add_(o * max(1, p.size(0) / p.size(1)) ** 0.5, alpha=-lr)


def moonlight(
    p: Tensor, g: Tensor, state: dict[str, Any], lr: float, decay: float, nesterov: bool = True
) -> None:
    """Summed momentum, scale 0.2·√max(rows, columns), decay at the unscaled rate."""
    buf = state.setdefault("buf", p.new_zeros(p.shape))
    buf.mul_(MOMENTUM).add_(g)
    o = newton_schulz(g.add(buf, alpha=MOMENTUM) if nesterov else buf)
    p.mul_(1 - lr * decay).add_(o, alpha=-lr * 0.2 * math.sqrt(max(p.shape)))


def keller_adam(
    p: Tensor, g: Tensor, state: dict[str, Any], lr: float, decay: float, eps: float = 1e-10
) -> None:
    """ε after the bias correction, as torch's AdamW."""
    m, v, step = _moments(p, g, state)
    corrected = v / (1 - BETAS[1] ** step)
    p.mul_(1 - lr * decay)
    p.add_(m / (1 - BETAS[0] ** step) / (corrected.sqrt() + eps), alpha=-lr)


def moonlight_adam(
    p: Tensor, g: Tensor, state: dict[str, Any], lr: float, decay: float, eps: float = 1e-8
) -> None:
    """ε before the bias correction."""
    m, v, step = _moments(p, g, state)
    scale = (1 - BETAS[0] ** step) / (1 - BETAS[1] ** step) ** 0.5
    p.mul_(1 - lr * decay).add_(m / (eps + v.sqrt()), alpha=-lr / scale)


def normuon(o: Tensor, second: Tensor, beta2: float = 0.95) -> Tensor:
    """Normalizes the rows of an orthogonal update; updates `second` (rows, 1) in place."""
    second.lerp_((o * o).mean(dim=-1, keepdim=True), 1 - beta2)
    even = o * (1 / (second.sqrt() + 1e-10))
    return even * (o.norm() / (even.norm() + 1e-10))


def _moments(p: Tensor, g: Tensor, state: dict[str, Any]) -> tuple[Tensor, Tensor, int]:
    m, v = (state.setdefault(key, p.new_zeros(p.shape)) for key in ("m", "v"))
    state["step"] = state.get("step", 0) + 1
    m.lerp_(g, 1 - BETAS[0])
    v.lerp_(g.square(), 1 - BETAS[1])
    return m, v, state["step"]
