"""Orthogonalizes matrices on several ranks: each matrix is computed once, by the rank that owns it.

Owners are assigned by the cost of a Newton–Schulz iteration, so that each of W ranks does about 1/W of the work.
The communication depends on the placement of the matrices:

    replicated on every rank (DDP)       one all-gather per shape distributes the updates
    sharded over one mesh (FSDP2, HSDP)  one all-to-all per shape sends shards to the owner, one sends them back
    anything else (tensor parallel, …)   each matrix is gathered on every rank: correct, but slower

A shape is (rows, columns) up to transposition; a collective never mixes shapes. Assigning whole matrices to ranks
comes from Jordan's Muon (github.com/KellerJordan/Muon), the all-to-all per shape from the Muon of
github.com/microsoft/dion.

The collectives are derived from the shapes alone, so all ranks must pass matrices of the same shapes in the same
order. A parameter with a gradient on some ranks only violates this, and the collectives then hang or fail. Neither
DDP (which averages over ranks) nor FSDP2 produces such gradients.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DeviceMesh, DTensor, Placement, Replicate, Shard

UpdateFunction = Callable[[list[Tensor]], list[Tensor]]
MatrixShape = tuple[int, int]

# torch 2.13 renames it and deprecates the old name
all_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def orthogonalize_distributed(
    directions: list[Tensor],
    compute: UpdateFunction,
    group: ProcessGroup | None = None,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """Computes the orthogonal update of each direction.

    Args:
        directions: 2-D, of one dtype. Plain tensors must be equal on all ranks, which DDP ensures by averaging the
            gradients. DTensors may have any placements; their mesh determines the ranks that take part.
        compute: Maps full plain matrices of any shapes (the list may be empty) to their updates of the same shapes.
            It is called with the matrices that this rank owns, at most once per placement.
        group: Ranks that share the work on plain tensors. None: all ranks, or this process alone without
            torch.distributed.
        dtype: The dtype in which updates are sent. None: the dtype of the directions. bf16 halves the traffic and
            loses nothing if `compute` iterates in bf16. The ranks agree to the bit in any case: all of them use
            what was sent.

    Returns:
        Updates in the order of the directions, each with the shape, dtype and placements of its direction.
    """
    plain, meshes = _group_by_placement(directions)
    updates = list(directions)
    if plain:
        replicated = _orthogonalize_replicated([directions[i] for i in plain], compute, group, dtype)
        _assign_at(updates, plain, replicated)
    for layout, indices in meshes.items():
        distributed = _orthogonalize_on_mesh(
            [cast(DTensor, directions[i]) for i in indices], *layout, compute, dtype
        )
        _assign_at(updates, indices, distributed)
    return updates


def lerp_shards(starts: list[Tensor], ends: list[Tensor], weight: float) -> list[Tensor]:
    """Computes start + weight · (end − start) of plain tensors, or of the shards of DTensors with equal placements.

    torch 2.11 cannot do this on DTensors: its `_foreach_lerp` has no sharding strategy.
    """
    shards = torch._foreach_lerp(
        [_get_shard(start) for start in starts], [_get_shard(end) for end in ends], weight
    )
    return [
        DTensor.from_local(
            shard, end.device_mesh, end.placements, run_check=False, shape=end.shape, stride=end.stride()
        )
        if isinstance(end, DTensor)
        else shard
        for shard, end in zip(shards, ends, strict=True)
    ]


def _get_shard(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def compute_row_norms(matrices: list[Tensor], dim: int) -> list[Tensor]:
    """Computes the Euclidean norm of each matrix along `dim`, as a full plain tensor on every rank.

    `dim` is kept with length 1. DTensors sharded over one mesh share one all-reduce; with other placements each
    costs one gather.
    """
    plain, meshes = _group_by_placement(matrices)
    norms = list(matrices)
    _assign_at(norms, plain, [_compute_norms(matrices[i], dim) for i in plain])
    for (mesh, placements), indices in meshes.items():
        members = [cast(DTensor, matrices[i]) for i in indices]
        if sharding := _find_shard_axis(placements):
            _assign_at(norms, indices, _compute_sharded_row_norms(members, dim, mesh, *sharding))
        else:
            _assign_at(
                norms,
                indices,
                [cast(DTensor, _compute_norms(matrix, dim)).full_tensor() for matrix in members],
            )
    return norms


def _compute_sharded_row_norms(
    matrices: list[DTensor], dim: int, mesh: DeviceMesh, axis: int, shard_dim: int
) -> list[Tensor]:
    """Sums squared norms over ranks: each rank writes those of its shard into a zero tensor of the full size."""
    group = mesh.get_group(axis)
    rank, world_size = dist.get_rank(group), dist.get_world_size(group)
    shapes = [(1, m.shape[1]) if dim == 0 else (m.shape[0], 1) for m in matrices]
    sizes = [math.prod(shape) for shape in shapes]
    squares = matrices[0].to_local().new_zeros(sum(sizes))
    norms = [part.view(shape) for part, shape in zip(squares.split(sizes), shapes, strict=True)]
    for matrix, norm in zip(matrices, norms, strict=True):
        local = norm
        if shard_dim != dim:
            local = norm.narrow(shard_dim, *_get_shard_bounds(matrix.shape[shard_dim], rank, world_size))
        torch.square(_compute_norms(matrix.to_local(), dim), out=local)
    dist.all_reduce(squares, group=group)
    squares.sqrt_()
    return norms


def _compute_norms(matrix: Tensor, dim: int) -> Tensor:
    return torch.linalg.vector_norm(matrix, dim=dim, keepdim=True)


def _group_by_placement(
    matrices: list[Tensor],
) -> tuple[list[int], dict[tuple[DeviceMesh, tuple[Placement, ...]], list[int]]]:
    """Returns the indices of the plain tensors, and those of the DTensors by mesh and placements."""
    plain: list[int] = []
    meshes: dict[tuple[DeviceMesh, tuple[Placement, ...]], list[int]] = defaultdict(list)
    for i, matrix in enumerate(matrices):
        (meshes[matrix.device_mesh, matrix.placements] if isinstance(matrix, DTensor) else plain).append(i)
    return plain, meshes


def _find_shard_axis(placements: tuple[Placement, ...]) -> tuple[int, int] | None:
    """Returns (mesh axis, dimension) if exactly one axis shards, evenly, and the others replicate; else None."""
    axes = [axis for axis, placement in enumerate(placements) if not isinstance(placement, Replicate)]
    if len(axes) == 1 and type(shard := placements[axes[0]]) is Shard:
        return axes[0], shard.dim
    return None


def _assign_at(target: list[Tensor], indices: Sequence[int], tensors: Sequence[Tensor]) -> None:
    for i, tensor in zip(indices, tensors, strict=True):
        target[i] = tensor


@lru_cache(maxsize=64)
def assign_owners(shapes: tuple[MatrixShape, ...], world_size: int) -> tuple[int, ...]:
    """Returns the rank that computes each matrix; the result is the same on every rank.

    Matrices are assigned in order of decreasing cost, each to the rank with the least work so far (Graham 1969: the
    busiest rank has at most 4/3 of the optimum).
    """
    owner = [0] * len(shapes)
    loads = [(0, rank) for rank in range(world_size)]
    for i in sorted(range(len(shapes)), key=lambda i: -compute_newton_schulz_flops(*shapes[i])):
        load, rank = loads[0]
        owner[i] = rank
        heapq.heapreplace(loads, (load + compute_newton_schulz_flops(*shapes[i]), rank))
    return tuple(owner)


def compute_newton_schulz_flops(rows: int, columns: int) -> int:
    """Computes the FLOPs of one Newton–Schulz iteration: 4·m²·n + 2·m³, where m is the smaller side."""
    m, n = sorted((rows, columns))
    return 4 * m * m * n + 2 * m**3


def _orthogonalize_on_mesh(
    directions: list[DTensor],
    mesh: DeviceMesh,
    placements: tuple[Placement, ...],
    compute: UpdateFunction,
    dtype: torch.dtype | None,
) -> list[Tensor]:
    """Orthogonalizes DTensors of equal mesh and placements. Each replica (HSDP) computes all matrices."""
    shards = [direction.to_local() for direction in directions]
    if sharding := _find_shard_axis(placements):
        axis, dim = sharding
        shapes = tuple((d.shape[0], d.shape[1]) for d in directions)
        updates = _orthogonalize_sharded(shards, shapes, dim, compute, mesh.get_group(axis), dtype)
    elif mesh.ndim == 1 and isinstance(placements[0], Replicate):
        updates = _orthogonalize_replicated(shards, compute, mesh.get_group(), dtype)
    else:
        return [_orthogonalize_gathered(direction, compute) for direction in directions]
    return [
        DTensor.from_local(u, mesh, placements, run_check=False, shape=d.shape, stride=d.stride())
        for u, d in zip(updates, directions, strict=True)
    ]


def _orthogonalize_gathered(direction: DTensor, compute: UpdateFunction) -> Tensor:
    """Gathers a DTensor of any placements and computes it on every rank; one at a time, to bound the memory."""
    (update,) = compute([direction.full_tensor()])
    replicate = [Replicate()] * direction.device_mesh.ndim
    replicated = DTensor.from_local(update, direction.device_mesh, replicate, run_check=False)
    return replicated.redistribute(placements=direction.placements)


def _orthogonalize_replicated(
    matrices: list[Tensor], compute: UpdateFunction, group: ProcessGroup | None, dtype: torch.dtype | None
) -> list[Tensor]:
    """Orthogonalizes matrices that every rank of `group` holds.

    One all-gather per shape, padded to equal counts per rank, distributes the updates.
    """
    if not dist.is_initialized() or dist.get_world_size(group) == 1:
        return compute(matrices)
    rank, world_size = dist.get_rank(group), dist.get_world_size(group)
    shapes = tuple((m.shape[0], m.shape[1]) for m in matrices)
    owner = assign_owners(shapes, world_size)
    local = [i for i in range(len(matrices)) if owner[i] == rank]
    computed = dict(zip(local, compute([matrices[i] for i in local]), strict=True))

    updates = list(matrices)
    for indices in _group_by_shape(shapes):
        owned = [[i for i in indices if owner[i] == r] for r in range(world_size)]
        slots = max(map(len, owned))
        send_buffer = matrices[0].new_empty((slots, math.prod(shapes[indices[0]])), dtype=dtype)
        views = [slot.view(shapes[i]) for slot, i in zip(send_buffer, owned[rank], strict=False)]
        if views:
            torch._foreach_copy_(views, [computed.pop(i) for i in owned[rank]])
        received = send_buffer.new_empty((world_size * slots, send_buffer.shape[1]))
        all_gather_single(received, send_buffer, group=group)
        received = received.to(matrices[0].dtype)
        for r, members in enumerate(owned):
            slots_of_rank = received[r * slots : r * slots + len(members)]
            _assign_at(
                updates, members, [u.view(shapes[i]) for i, u in zip(members, slots_of_rank, strict=True)]
            )
    return updates


def _orthogonalize_sharded(
    shards: list[Tensor],
    shapes: tuple[MatrixShape, ...],
    dim: int,
    compute: UpdateFunction,
    group: ProcessGroup,
    dtype: torch.dtype | None,
) -> list[Tensor]:
    """Orthogonalizes matrices of `shapes`, sharded along `dim` over `group`: sends them to their owners and back.

    All matrices are collected before any is computed, so that the work is balanced over the whole model and not
    per shape. Until it returns, this takes the memory of about three more shards of the matrices.
    """
    rank, world_size = dist.get_rank(group), dist.get_world_size(group)
    owner = assign_owners(shapes, world_size)
    owned_by_shape = [
        [[i for i in indices if owner[i] == r] for r in range(world_size)]
        for indices in _group_by_shape(shapes)
    ]

    def get_bounds(i: int, r: int) -> tuple[int, int]:
        return _get_shard_bounds(shapes[i][dim], r, world_size)

    def get_shard_shape(i: int, r: int) -> MatrixShape:
        length = get_bounds(i, r)[1]
        return (length, shapes[i][1]) if dim == 0 else (shapes[i][0], length)

    matrices: dict[int, Tensor] = {}
    for owned in owned_by_shape:
        outgoing = [[shards[i] for i in members] for members in owned]
        incoming = [[get_shard_shape(i, r) for i in owned[rank]] for r in range(world_size)]
        received = _all_to_all(outgoing, incoming, shards[0], group)
        for i, *pieces in zip(owned[rank], *received, strict=True):
            matrices[i] = torch.cat(pieces, dim)
    updates = dict(zip(matrices, compute(list(matrices.values())), strict=True))

    result = list(shards)
    for owned in owned_by_shape:
        outgoing = [
            [updates[i].narrow(dim, *get_bounds(i, r)) for i in owned[rank]] for r in range(world_size)
        ]
        incoming = [[get_shard_shape(i, rank) for i in members] for members in owned]
        received = _all_to_all(outgoing, incoming, shards[0], group, dtype)
        for members, pieces in zip(owned, received, strict=True):
            _assign_at(result, members, pieces)
    return result


def _all_to_all(
    outgoing: list[list[Tensor]],
    incoming: list[list[MatrixShape]],
    like: Tensor,
    group: ProcessGroup,
    dtype: torch.dtype | None = None,
) -> list[list[Tensor]]:
    """Sends `outgoing[r]` to rank r and returns the tensors received from it, of the shapes `incoming[r]`.

    Tensors are sent in `dtype` and returned in the dtype of `like`. Sizes are exact, so shards may be uneven or
    empty.
    """
    flat = [tensor.reshape(-1) for tensors in outgoing for tensor in tensors]
    send_buffer = torch.cat(flat or [like.new_empty(0)]).to(dtype or like.dtype)
    sizes = [[math.prod(shape) for shape in shapes] for shapes in incoming]
    received = send_buffer.new_empty(sum(map(sum, sizes)))
    dist.all_to_all_single(
        received,
        send_buffer,
        output_split_sizes=[sum(rank_sizes) for rank_sizes in sizes],
        input_split_sizes=[sum(t.numel() for t in tensors) for tensors in outgoing],
        group=group,
    )
    parts = iter(received.to(like.dtype).split([size for rank_sizes in sizes for size in rank_sizes]))
    return [[next(parts).view(shape) for shape in shapes] for shapes in incoming]


def _get_shard_bounds(length: int, rank: int, world_size: int) -> tuple[int, int]:
    """Returns start and length of a rank's shard as `torch.chunk` and DTensor split; the last may be empty."""
    size = -(-length // world_size)
    start = min(length, size * rank)
    return start, min(length, start + size) - start


def _group_by_shape(shapes: Sequence[MatrixShape]) -> list[list[int]]:
    """Groups indices by shape up to transposition, in order of first appearance."""
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, shape in enumerate(shapes):
        groups[tuple(sorted(shape))].append(i)
    return list(groups.values())
