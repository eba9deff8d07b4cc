"""Muon for hidden matrices and AdamW for everything else, in one optimizer.

Muon moves a matrix along its momentum made orthogonal (Jordan et al. 2024, "Muon: An optimizer for hidden
layers in neural networks"); `scale: rms` sizes that step like AdamW's (Liu et al. 2025, "Muon is Scalable for
LLM Training", Moonlight), `scale: spectral` as Jordan does. Momentum is an exponential moving average.
Moonlight's plain sum differs from it by a constant factor, which the orthogonalization removes, so that one
core serves both.

The role of a parameter stands in its group (`kind`), never in the state: accelerate replaces the parameters
of an optimizer without telling its state. State is fp32 tensors only. Gradients are read, never written.

Shapes: B matrices that are orthogonalized together, M rows, N columns, M <= N.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from krill.optim.newton_schulz import orthogonalize, polynomials

DEFAULTS: dict[str, dict[str, Any]] = {
    "muon": {
        "weight_decay": 0.1,
        "momentum": 0.95,
        "nesterov": True,
        "scale": "rms",
        "ns_steps": 5,
        "ns_coefficients": "keller",
        "ns_dtype": None,
    },
    "adamw": {"weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8},
}
COMMON = {"params", "kind", "lr", "name", "param_names", "initial_lr"}

BATCH_ELEMENTS = 1 << 24  # 64 MiB in fp32; the iteration holds up to five copies of its batch


def update_scale(scale: str, rows: int, columns: int) -> float:
    """What an orthogonal rows × columns update is multiplied with, besides the learning rate.

    rms: 0.2·√max(r, c), an update whose root mean square is that of AdamW, about 0.2, for every shape.
    spectral: √max(1, r/c).

    Raises:
        ValueError: `scale` is neither rms nor spectral.
    """
    if scale == "rms":
        return 0.2 * math.sqrt(max(rows, columns))
    if scale == "spectral":
        return math.sqrt(max(1.0, rows / columns))
    raise ValueError(f"scale={scale!r} is unknown; use rms or spectral")


class Muon(torch.optim.Optimizer):
    """Groups of `kind: muon` (2-D parameters) and groups of `kind: adamw` (any shape).

    Weight decay is decoupled, with the group's own rate: p ← p·(1 − lr·weight_decay) before the update. A
    parameter without a gradient is not touched. The AdamW groups are torch's AdamW to the bit, for every
    preset: ε is added after the bias correction of the second moment. (Moonlight's script adds it before;
    with ε = 1e-8 that is a difference in the first steps of parameters with tiny gradients.)

    Args:
        params: Groups. Each has `params`, `kind` and `lr`, and may have `name` and the options of its kind
            (`DEFAULTS`): for muon `weight_decay`, `momentum`, `nesterov`, `scale` (rms or spectral),
            `ns_steps`, `ns_coefficients` (keller or polar_express) and `ns_dtype` (None: as `orthogonalize`
            chooses); for adamw `weight_decay`, `betas`, `eps`.

    State, per parameter: `momentum_buffer`, or `exp_avg`, `exp_avg_sq` and `step` (0-D, on the CPU).

    Raises:
        ValueError: a group without kind or lr or with an unknown option or value; a parameter of kind muon
            that is not 2-D.
        TypeError: a parameter that is not fp32 (complex and half precision are not trained).
    """

    def __init__(self, params: Iterable[dict[str, Any]]):
        super().__init__(params, {})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group; its missing options get the defaults of its kind. Raises as the class says."""
        kind = param_group.get("kind")
        if kind not in DEFAULTS or "lr" not in param_group:
            raise ValueError("every group needs kind (muon or adamw) and lr")
        if unknown := sorted(param_group.keys() - COMMON - DEFAULTS[kind].keys()):
            raise ValueError(f"a group of kind {kind} has no option {', '.join(unknown)}")
        super().add_param_group(DEFAULTS[kind] | param_group)
        try:
            _check(self.param_groups[-1])
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient.

        Args:
            closure: Computes the loss and its gradients; called once, before the update.

        Returns:
            What `closure` returned.

        Raises:
            RuntimeError: a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            grads = [p.grad for p in params]
            if any(grad.layout != torch.strided for grad in grads):
                raise RuntimeError("Muon takes dense gradients only; build the embedding with sparse=False")
            if params:
                update = self._step_muon if group["kind"] == "muon" else self._step_adamw
                update(group, params, grads)
        return loss

    def _step_muon(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        momentum = group["momentum"]
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in params]

        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        for batch in _same_shape(params):
            directions = [buffers[i] for i in batch]
            if group["nesterov"]:
                directions = list(torch._foreach_lerp([grads[i] for i in batch], directions, momentum))
            o_BMN = orthogonalize(
                torch.stack([_wide(d) for d in directions]),
                group["ns_steps"],
                group["ns_coefficients"],
                group["ns_dtype"],
            )
            wide = [_wide(params[i]) for i in batch]
            updates = list(o_BMN.unbind())
            torch._foreach_mul_(
                updates, [-group["lr"] * update_scale(group["scale"], *params[i].shape) for i in batch]
            )
            torch._foreach_add_(wide, updates)

    def _step_adamw(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p]["step"] = torch.zeros((), dtype=torch.float32)
                self.state[p]["exp_avg"] = torch.zeros_like(p)
                self.state[p]["exp_avg_sq"] = torch.zeros_like(p)
        states = [self.state[p] for p in params]
        beta1, beta2 = group["betas"]
        adamw(
            params,
            grads,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            foreach=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _check(group: dict[str, Any]) -> None:
    for p in group["params"]:
        if p.dtype != torch.float32:
            raise TypeError(f"Muon trains fp32 parameters, got {p.dtype} of shape {tuple(p.shape)}")
    if group["kind"] == "muon":
        for p in group["params"]:
            if p.ndim != 2:
                raise ValueError(f"kind muon takes 2-D parameters, got the shape {tuple(p.shape)}; use adamw")
        update_scale(group["scale"], 1, 1)
        polynomials(group["ns_coefficients"], group["ns_steps"])


def _wide(matrix: Tensor) -> Tensor:
    """A view with no more rows than columns."""
    return matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix


def _same_shape(matrices: list[Tensor]) -> Iterator[list[int]]:
    """Indices of each batch: one device, one shape up to transposition, bounded memory."""
    by_shape: dict[tuple[torch.device, int, int], list[int]] = defaultdict(list)
    for i, matrix in enumerate(matrices):
        by_shape[matrix.device, min(matrix.shape), max(matrix.shape)].append(i)
    for (_, rows, columns), indices in by_shape.items():
        size = max(1, BATCH_ELEMENTS // (rows * columns))
        for start in range(0, len(indices), size):
            yield indices[start : start + size]
