"""Measures learning rate, gradient norm and update size of each parameter group in logged steps.

    lr/<group>          learning rate of the step
    grad_norm/<group>   norm of the group's gradients before clipping; grad_norm/muon and grad_norm/adamw: over all
                        groups of that kind
    update_rms/<group>  root mean square of the update before learning rate and weight decay: about 0.2 for Muon at
                        scale: rms and, once its moments have settled, 0.2 to 0.4 for AdamW, up to 1 in its
                        first steps (Liu et al. 2025)

Muon passes its updates to an observer, AdamW's are computed from its state; other optimizers have no update_rms.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from krill.optim.muon import Muon


class OptimizerStats:
    """Statistics of one step: created before the gradients are clipped, read after it.

    Only reading waits for the device.
    """

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.optimizer = optimizer
        self.groups = {group.get("name", str(i)): group for i, group in enumerate(optimizer.param_groups)}
        self.learning_rates = {name: float(group["lr"]) for name, group in self.groups.items()}
        self.grad_norms: dict[str, Tensor] = {}
        self.update_norms: dict[str, list[Tensor]] = defaultdict(list)
        kinds: dict[str, list[Tensor]] = defaultdict(list)
        for name, group in self.groups.items():
            gradients = [p.grad for p in group["params"] if p.grad is not None]
            if gradients:
                self.grad_norms[name] = _compute_total_norm(gradients)
                kinds[group.get("kind", name)].append(self.grad_norms[name])
        self.grad_norms |= {kind: _combine_norms(norms) for kind, norms in kinds.items()}
        if isinstance(optimizer, Muon):
            optimizer.observer = self._record_update

    def collect_metrics(self) -> dict[str, float]:
        """Returns the metrics listed in the module docstring. Call it before the next step changes AdamW's state."""
        if isinstance(self.optimizer, Muon):
            self.optimizer.observer = None
        norms_by_name = {f"grad_norm/{name}": norm for name, norm in self.grad_norms.items()}
        for name, group in self.groups.items():
            norms = self.update_norms.get(name) or _compute_adamw_update_norms(self.optimizer, group)
            if norms:
                elements = sum(p.numel() for p in group["params"])
                norms_by_name[f"update_rms/{name}"] = _combine_norms(norms) / math.sqrt(elements)
        values = torch.stack(list(norms_by_name.values())).tolist() if norms_by_name else []
        return {f"lr/{name}": rate for name, rate in self.learning_rates.items()} | dict(
            zip(norms_by_name, values, strict=True)
        )

    def _record_update(self, group: dict[str, Any], updates: list[Tensor]) -> None:
        name = next(name for name, known in self.groups.items() if known is group)
        self.update_norms[name].append(_compute_total_norm(updates))


def _compute_total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Returns the norm over all elements, 0-D; for DTensors over all shards, on every rank."""
    norm = get_total_norm(tensors)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _combine_norms(norms: list[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(torch.stack(norms))


def _compute_adamw_update_norms(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> list[Tensor]:
    """Returns the norm of each parameter's last update, computed from its moments one at a time to save memory."""
    norms = []
    for p in group["params"]:
        state = optimizer.state.get(p, {})
        if {"step", "exp_avg", "exp_avg_sq"} <= state.keys():
            step, (beta1, beta2), eps = state["step"].double(), group["betas"], group["eps"]
            correction = (1 - beta2**step).sqrt()
            if group.get("eps_before_correction"):
                eps = eps / correction
            root = state["exp_avg_sq"].sqrt().div_(correction).add_(eps)
            norms.append(_compute_total_norm([state["exp_avg"].div(root).div_(1 - beta1**step)]))
    return norms
