"""NorMuon: every neuron of an orthogonal update is moved about equally far.

The rows of an orthogonal matrix, one for each output neuron, differ in length. NorMuon (Li et al. 2025, "NorMuon:
Making Muon more efficient and scalable") divides each by the root of a running mean of its square, and gives the
update back the Frobenius norm that it had.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

from krill.optim.distributed import row_norms
from krill.optim.layout import Layout
from krill.optim.skip_mask import NO_SKIP, SkipMask

BETA2 = 0.95
EPSILON = 1e-10
MIN_DENOMINATOR = 1e-30  # guards the division of an update that is zero


def init_second_moment(parameter: Tensor, layout: Layout) -> Tensor:
    """The second moment of a parameter before its first step: one fp32 zero per neuron.

    (rows, 1), or (1, columns) where the weight is transposed. Of a DTensor too it is a plain tensor, the same on
    every rank: it is small, and all of it is needed to keep the norm.
    """
    shape = (1, parameter.shape[1]) if layout.transposed else (parameter.shape[0], 1)
    return torch.zeros(shape, dtype=torch.float32, device=parameter.device)


def normalize_neurons(
    updates: list[Tensor], moments: list[Tensor], layout: Layout, mask: SkipMask = NO_SKIP
) -> list[Tensor]:
    """Updates with neurons of about equal length; each projection in a matrix keeps its Frobenius norm.

    Args:
        updates: Orthogonal updates, plain or DTensors. A row of zeros stays zero.
        moments: Of each update, as `init_second_moment` makes it; moved on in place.
        layout: Of all of them.
        mask: Keeps the moments in a bad step.

    Returns:
        New tensors of the kind and shape of the updates.
    """
    inputs = 0 if layout.transposed else 1
    norms = row_norms(updates, inputs)
    squares = torch._foreach_mul(norms, norms)
    torch._foreach_mul_(squares, [1 / u.shape[inputs] for u in updates])
    mask.replace(squares, by=moments)
    torch._foreach_lerp_(moments, squares, 1 - BETA2)

    same: dict[torch.Size, list[int]] = defaultdict(list)
    for i, norm in enumerate(norms):
        same[norm.shape].append(i)
    factors = list(norms)
    for batch in same.values():
        n_BRC, v_BRC = (torch.stack([tensors[i] for i in batch]) for tensors in (norms, moments))
        kept = _preserve_norm(n_BRC, v_BRC.sqrt().add_(EPSILON).reciprocal_(), layout)
        for i, factor in zip(batch, kept.unbind(), strict=True):
            factors[i] = _distribute_like(factor, updates[i])
    return list(torch._foreach_mul(updates, factors))


def _preserve_norm(n_BRC: Tensor, f_BRC: Tensor, layout: Layout) -> Tensor:
    """The factors of the neurons, changed so that lengths n keep their norm in each projection."""
    kept = []
    for n_BO1, f_BO1 in zip(layout.split(n_BRC), layout.split(f_BRC), strict=True):
        before = torch.linalg.vector_norm(n_BO1, dim=(1, 2), keepdim=True)
        after = torch.linalg.vector_norm(n_BO1 * f_BO1, dim=(1, 2), keepdim=True)
        kept.append(f_BO1 * (before / after.clamp_min(MIN_DENOMINATOR)))
    return layout.join(kept)


def _distribute_like(factor: Tensor, update: Tensor) -> Tensor:
    """`factor`, which every rank has, as something that `update` can be multiplied with."""
    if not isinstance(update, DTensor):
        return factor
    mesh = update.device_mesh
    whole = DTensor.from_local(factor, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return whole.redistribute(
        placements=[
            cut if isinstance(cut, Shard) and factor.shape[cut.dim] == update.shape[cut.dim] else Replicate()
            for cut in update.placements
        ]
    )
