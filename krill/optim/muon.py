"""Muon for hidden matrices and AdamW for everything else, in one optimizer.

Muon updates a matrix with its orthogonalized momentum (Jordan et al. 2024, "Muon: An optimizer for hidden layers in
neural networks"). `scale: rms` gives the update the size of AdamW's (Liu et al. 2025, "Muon is Scalable for LLM
Training", Moonlight); `scale: spectral` is Jordan's. Momentum is an exponential moving average. Moonlight's plain
sum differs from it by a constant factor, which the orthogonalization removes, so one implementation serves both.

The role of a parameter is stored in its group (`kind`), never in the state, because accelerate replaces the
parameters of an optimizer without updating its state. State consists of fp32 tensors only. Gradients are never
written, except in a step that is masked out (`krill.optim.skip_mask`).

Shapes: B matrices that are orthogonalized together, R rows, C columns.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.optim.adamw import adamw

from krill.optim import normuon
from krill.optim.distributed import lerp_shards, orthogonalize_distributed
from krill.optim.layout import Layout
from krill.optim.limits import MAX_BATCH_ELEMENTS
from krill.optim.newton_schulz import get_step_coefficients, orthogonalize, resolve_ns_dtype
from krill.optim.skip_mask import SkipMask, async_to_host, get_shards

GROUP_DEFAULTS: dict[str, dict[str, Any]] = {
    "muon": {
        "weight_decay": 0.1,
        "momentum": 0.95,
        "nesterov": True,
        "scale": "rms",
        "ns_steps": 5,
        "ns_coefficients": "keller",
        "ns_dtype": "auto",
        "cautious": False,
        "normuon": False,
        **Layout()._asdict(),
    },
    "adamw": {"weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8, "eps_before_correction": False},
}
COMMON_GROUP_KEYS = {"params", "kind", "lr", "name", "param_names", "initial_lr"}


def compute_update_scale(scale: str, rows: int, columns: int) -> float:
    """Returns the factor of an orthogonal rows × columns update, apart from the learning rate.

    rms: 0.2·√max(r, c); the root mean square of the update is then about 0.2, as with AdamW, for every shape.
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
    """Optimizes groups of `kind: muon` (2-D parameters) and groups of `kind: adamw` (any shape).

    Weight decay is decoupled and uses the learning rate of the group: p ← p·(1 − lr·weight_decay) before the update.
    Parameters without a gradient are not changed. The AdamW groups match `torch.optim.AdamW` to the bit.

    Parameters may be plain tensors or DTensors (FSDP2); with several processes, `krill.optim.distributed`
    distributes the orthogonalization.

    Args:
        params: Parameter groups. Each has `params`, `kind` and `lr`, and may have `name` and the options of its kind
            (`GROUP_DEFAULTS`). For adamw: `weight_decay`, `betas`, `eps`, `eps_before_correction` (add ε before the
            bias correction of the second moment, as Moonlight's script does, instead of after it, as torch does).
            For muon:
            `weight_decay`, `momentum`, `nesterov`;
            `scale`: rms or spectral;
            `ns_steps`, `ns_coefficients` (keller or polar_express), `ns_dtype` (auto, bf16 or fp32, see
            `resolve_ns_dtype`);
            `cautious`: decay a weight only if the update has the same sign or is zero (Chen et al. 2025, "Cautious
            Weight Decay");
            `normuon`: give all neurons updates of about equal length (Li et al. 2025, `krill.optim.normuon`);
            `transposed`, `blocks`, `parts`: the layout of projections in a parameter (`krill.optim.layout.Layout`).
        process_group: Processes that share the work on plain parameters; None: all.

    State, per parameter: `momentum_buffer`, with normuon also `second_momentum`; or `exp_avg`, `exp_avg_sq` and
    `step` (0-D, on the CPU).

    Raises:
        ValueError: a group lacks kind or lr, or has an unknown option or value; a parameter of kind muon is not 2-D
            or does not fit the layout of its group.
        TypeError: a parameter is not fp32 (complex and half precision are not supported).
    """

    observer: Callable[[dict[str, Any], list[Tensor]], None] | None = None
    """Called with each group of kind muon and the updates of some of its parameters, before learning rate and weight
    decay are applied; each parameter is passed once per step."""

    found_inf: Tensor | None = None
    """0-D fp32 on the parameters' device. 1: `step` leaves parameters and state unchanged, to the bit, and
    overwrites the gradients of muon groups. 0 or None: `step` updates them."""

    _unconfirmed_counts: tuple[Callable[[], bool], list[Tensor]] | None = None
    """Reads whether the last step was masked out (a flag on its way to the host); the step counts it incremented."""

    def __init__(self, params: Iterable[dict[str, Any]], process_group: ProcessGroup | None = None):
        self.process_group = process_group
        super().__init__(params, {})

    def __getstate__(self) -> dict[str, Any]:
        self._revert_masked_counts()
        return super().__getstate__() | {"process_group": None}  # belongs to this process

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as `torch.optim.Optimizer.state_dict`, with the step counts corrected."""
        self._revert_masked_counts()
        return super().state_dict()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group; missing options get the defaults of its kind. Raises the errors listed for the class."""
        kind = param_group.get("kind")
        if kind not in GROUP_DEFAULTS or "lr" not in param_group:
            raise ValueError("every group needs kind (muon or adamw) and lr")
        if unknown := sorted(param_group.keys() - COMMON_GROUP_KEYS - GROUP_DEFAULTS[kind].keys()):
            raise ValueError(f"a group of kind {kind} has no option {', '.join(unknown)}")
        super().add_param_group(GROUP_DEFAULTS[kind] | param_group)
        try:
            _check_group(self.param_groups[-1])
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Updates every parameter that has a gradient.

        Args:
            closure: Computes the loss and its gradients; called once, before the update.

        Returns:
            The result of `closure`.

        Raises:
            RuntimeError: a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._revert_masked_counts()
        mask = SkipMask(self.found_inf)
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            grads = [p.grad for p in params]
            if any(grad.layout != torch.strided for grad in grads):
                raise RuntimeError("Muon takes dense gradients only; build the embedding with sparse=False")
            if params:
                update = self._step_muon if group["kind"] == "muon" else self._step_adamw
                update(group, params, grads, mask)
        if mask.found_inf is not None:
            self._unconfirmed_counts = async_to_host(mask.found_inf), self._get_step_counts()
        return loss

    def _revert_masked_counts(self) -> None:
        """Decrements the step counts if the last step was masked out.

        The host needs the counts (`_compute_epsilon`) and reads the flag one step late, when the device already has
        the work of the next step and does not idle.
        """
        if self._unconfirmed_counts is not None:
            was_masked, counts = self._unconfirmed_counts
            self._unconfirmed_counts = None
            if counts and was_masked():
                torch._foreach_sub_(counts, 1.0)

    def _get_step_counts(self) -> list[Tensor]:
        """Returns `step` of each parameter that AdamW updated in this step."""
        adamw_groups = [group for group in self.param_groups if group["kind"] == "adamw"]
        return [self.state[p]["step"] for g in adamw_groups for p in g["params"] if p.grad is not None]

    def _step_muon(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], mask: SkipMask
    ) -> None:
        momentum, decay, layout = group["momentum"], group["lr"] * group["weight_decay"], _get_layout(group)
        buffers = self._get_or_init_state(params, "momentum_buffer", torch.zeros_like)
        mask.replace(grads, source=buffers)  # keeps momentum and direction unchanged and finite
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        if not group["cautious"]:
            torch._foreach_mul_(params, mask.get_factor(1 - decay))

        for batch in self._split_batches(params):
            batch_params = [params[i] for i in batch]
            directions = [buffers[i] for i in batch]
            if group["nesterov"]:
                directions = lerp_shards([grads[i] for i in batch], directions, momentum)
            send_dtype = resolve_ns_dtype(directions[0].device, group["ns_dtype"])
            updates = orthogonalize_distributed(
                directions, partial(_compute_updates, group), self.process_group, send_dtype
            )
            if group["normuon"]:
                init = partial(normuon.init_second_moment, layout=layout)
                moments = self._get_or_init_state(batch_params, "second_momentum", init)
                updates = normuon.normalize_neurons(updates, moments, layout, mask)
            if self.observer:
                self.observer(group, updates)
            mask.zero(updates)
            if group["cautious"]:
                _apply_cautious_decay(batch_params, updates, decay, mask)
            torch._foreach_add_(batch_params, updates, alpha=-group["lr"])

    def _split_batches(self, params: list[Tensor]) -> Iterable[list[int]]:
        """Returns batches of indices.

        One process: batches of one shape and bounded memory. Several: a single batch, to balance the work.
        """
        if dist.is_initialized() and dist.get_world_size(self.process_group) > 1:
            return [list(range(len(params)))]
        return _batch_by_shape(params)

    def _get_or_init_state(
        self, params: list[Tensor], name: str, init: Callable[[Tensor], Tensor]
    ) -> list[Tensor]:
        for p in params:
            if name not in self.state[p]:
                self.state[p][name] = init(p)
        return [self.state[p][name] for p in params]

    def _step_adamw(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], mask: SkipMask
    ) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p]["step"] = torch.zeros((), dtype=torch.float32)
                self.state[p]["exp_avg"] = torch.zeros_like(p)
                self.state[p]["exp_avg_sq"] = torch.zeros_like(p)
        steps = [self.state[p]["step"] for p in params]
        torch._foreach_add_(steps, 1.0)
        for count, indices in _group_by_step(steps).items():
            states = [self.state[params[i]] for i in indices]
            # The kernel needs the counts on its device and increments them; the state's stay on the CPU, where
            # reading them does not wait for the device.
            device_counts = torch.full((len(indices),), count - 1.0, device=params[0].device)
            adamw(
                [params[i] for i in indices],
                [grads[i] for i in indices],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                list(device_counts.unbind()),
                fused=True,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=_compute_epsilon(group, count),
                maximize=False,
                found_inf=mask.found_inf,
            )


def _group_by_step(steps: list[Tensor]) -> dict[float, list[int]]:
    """Groups the indices of parameters by step count; one kernel call updates each group."""
    groups: dict[float, list[int]] = defaultdict(list)
    for i, step in enumerate(steps):
        groups[step.item()].append(i)
    return groups


def _compute_epsilon(group: dict[str, Any], step: float) -> float:
    """Returns the ε to pass to torch's AdamW: Moonlight's order equals torch's with ε / √(1 − β₂ᵗ)."""
    eps: float = group["eps"]
    return eps / math.sqrt(1 - group["betas"][1] ** step) if group["eps_before_correction"] else eps


def _check_group(group: dict[str, Any]) -> None:
    for p in group["params"]:
        if p.dtype != torch.float32:
            raise TypeError(f"Muon trains fp32 parameters, got {p.dtype} of shape {tuple(p.shape)}")
    if group["kind"] == "muon":
        for p in group["params"]:
            if p.ndim != 2:
                raise ValueError(f"kind muon takes 2-D parameters, got the shape {tuple(p.shape)}; use adamw")
            _get_layout(group).shapes(*p.shape)
        compute_update_scale(group["scale"], 1, 1)
        get_step_coefficients(group["ns_coefficients"], group["ns_steps"])
        # A string, because checkpoints of FSDP2 cannot hold a torch.dtype.
        if group["ns_dtype"] not in ("auto", "bf16", "fp32"):
            raise ValueError(f"ns_dtype={group['ns_dtype']!r} is unknown; use auto, bf16 or fp32")


def _get_layout(group: dict[str, Any]) -> Layout:
    return Layout(group["transposed"], group["blocks"], tuple(group["parts"]))


def _compute_updates(group: dict[str, Any], matrices: list[Tensor]) -> list[Tensor]:
    """Computes the scaled orthogonal updates of full plain matrices in the layout of their group."""
    layout = _get_layout(group)
    updates = list(matrices)
    for batch in _batch_by_shape(matrices):
        d_BRC = torch.stack([matrices[i] for i in batch])
        # A single projection needs no transposition: orthogonalize handles wide and tall matrices.
        projections = layout.split(d_BRC) if layout.parts else [d_BRC]
        orthogonal = [
            orthogonalize(
                projection,
                group["ns_steps"],
                group["ns_coefficients"],
                resolve_ns_dtype(d_BRC.device, group["ns_dtype"]),
                compute_update_scale(group["scale"], *shape),
            )
            for projection, shape in zip(projections, layout.shapes(*d_BRC.shape[1:]), strict=True)
        ]
        u_BRC = layout.join(orthogonal) if layout.parts else orthogonal[0]
        for i, update in zip(batch, u_BRC.unbind(), strict=True):
            updates[i] = update
    return updates


def _apply_cautious_decay(params: list[Tensor], updates: list[Tensor], decay: float, mask: SkipMask) -> None:
    """Sets p ← p − decay·p where update·p ≥ 0, i.e. where subtracting the update shrinks p or does nothing.

    Updates have the placements of their parameters. torch 2.11 cannot do this on DTensors.
    """
    params = get_shards(params)
    decayed = torch._foreach_mul(get_shards(updates), params)
    torch._foreach_sign_(decayed)
    torch._foreach_add_(decayed, 1.0)
    torch._foreach_clamp_max_(decayed, 1.0)  # signs −1, 0, 1 become factors 0, 1, 1
    torch._foreach_mul_(decayed, params)
    mask.zero(decayed)
    torch._foreach_add_(params, decayed, alpha=-decay)


def _batch_by_shape(matrices: list[Tensor]) -> Iterator[list[int]]:
    """Yields the indices of each batch: one device, one shape, bounded memory."""
    by_shape: dict[tuple[torch.device, torch.Size], list[int]] = defaultdict(list)
    for i, matrix in enumerate(matrices):
        by_shape[matrix.device, matrix.shape].append(i)
    for (_, shape), indices in by_shape.items():
        size = max(1, MAX_BATCH_ELEMENTS // max(1, shape.numel()))
        for start in range(0, len(indices), size):
            yield indices[start : start + size]
