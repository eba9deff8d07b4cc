"""NorMuon: normalize the neurons of an orthogonal update to about equal length.

The rows of an orthogonal matrix, one per output neuron, differ in length. NorMuon (Li et al. 2025, "NorMuon: Making
Muon more efficient and scalable") divides each by the root of a running mean of its square, then rescales the update
to its original Frobenius norm.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

from krill.optim.distributed import compute_row_norms
from krill.optim.layout import Layout
from krill.optim.skip_mask import NO_SKIP, SkipMask

BETA2 = 0.95
EPSILON = 1e-10
MIN_DENOMINATOR = 1e-30  # for updates that are zero


def init_second_moment(parameter: Tensor, layout: Layout) -> Tensor:
    """Returns the second moment of a parameter before its first step: one fp32 zero per neuron.

    The shape is (rows, 1), or (1, columns) if the weight is transposed. For a DTensor it is a plain tensor as well,
    equal on every rank: it is small, and preserving the norm needs all of it.
    """
    shape = (1, parameter.shape[1]) if layout.transposed else (parameter.shape[0], 1)
    return torch.zeros(shape, dtype=torch.float32, device=parameter.device)


def normalize_neurons(
    updates: list[Tensor], moments: list[Tensor], layout: Layout, mask: SkipMask = NO_SKIP
) -> list[Tensor]:
    """Scales neurons to about equal length; each projection in a matrix keeps its Frobenius norm.

    Args:
        updates: Orthogonal updates, plain tensors or DTensors. A row of zeros stays zero.
        moments: The second moment of each update, from `init_second_moment`; updated in place.
        layout: Layout of all updates.
        mask: Keeps the moments in a step that is masked out.

    Returns:
        New tensors of the type and shape of the updates.
    """
    inputs = 0 if layout.transposed else 1
    norms = compute_row_norms(updates, inputs)
    squares = torch._foreach_mul(norms, norms)
    torch._foreach_mul_(squares, [1 / u.shape[inputs] for u in updates])
    mask.replace(squares, source=moments)
    torch._foreach_lerp_(moments, squares, 1 - BETA2)

    by_shape: dict[torch.Size, list[int]] = defaultdict(list)
    for i, norm in enumerate(norms):
        by_shape[norm.shape].append(i)
    factors = list(norms)
    for batch in by_shape.values():
        n_BRC, v_BRC = (torch.stack([tensors[i] for i in batch]) for tensors in (norms, moments))
        f_BRC = _preserve_norm(n_BRC, v_BRC.sqrt().add_(EPSILON).reciprocal_(), layout)
        for i, factor in zip(batch, f_BRC.unbind(), strict=True):
            factors[i] = _distribute_like(factor, updates[i])
    return list(torch._foreach_mul(updates, factors))


def _preserve_norm(n_BRC: Tensor, f_BRC: Tensor, layout: Layout) -> Tensor:
    """Rescales the factors f of the neurons so that n·f has the norm of the lengths n in each projection."""
    factors = []
    for n_BO1, f_BO1 in zip(layout.split(n_BRC), layout.split(f_BRC), strict=True):
        before = torch.linalg.vector_norm(n_BO1, dim=(1, 2), keepdim=True)
        after = torch.linalg.vector_norm(n_BO1 * f_BO1, dim=(1, 2), keepdim=True)
        factors.append(f_BO1 * (before / after.clamp_min(MIN_DENOMINATOR)))
    return layout.join(factors)


def _distribute_like(factor: Tensor, update: Tensor) -> Tensor:
    """Distributes `factor`, which is equal on every rank, so that `update` can be multiplied by it."""
    if not isinstance(update, DTensor):
        return factor
    mesh = update.device_mesh
    replicated = DTensor.from_local(factor, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return replicated.redistribute(
        placements=[
            p if isinstance(p, Shard) and factor.shape[p.dim] == update.shape[p.dim] else Replicate()
            for p in update.placements
        ]
    )
