"""Orthogonalize over several ranks: every matrix is computed once, by the rank that owns it.

Owners are chosen by the cost of a Newton–Schulz iteration, so that each of W ranks does about 1/W of the work.
What moves depends on how the matrices lie:

    every rank has all of them (DDP)     nothing goes out, one all-gather per shape brings the updates back
    sharded over one mesh (FSDP2, HSDP)  one all-to-all per shape brings shards to the owner, one brings them back
    anything else (tensor parallel, …)   each matrix is gathered on every rank: right, but slower

A shape is (rows, columns) up to transposition; collectives never mix shapes. A matrix per rank in turn: Jordan's
Muon (github.com/KellerJordan/Muon); all-to-all per shape: Muon of github.com/microsoft/dion.

Collectives follow from the shapes alone, so all ranks must pass matrices of the same shapes in the same order.
A parameter that has a gradient on some ranks and none on others breaks that, and the collectives then hang or
fail: DDP does not make such gradients (it averages over ranks), nor does FSDP2.
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

# torch 2.13 renames it and warns of the old name
all_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def orthogonalize_distributed(
    directions: list[Tensor],
    compute: UpdateFunction,
    group: ProcessGroup | None = None,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """The orthogonal update of each direction.

    Args:
        directions: 2-D, of one dtype. Plain tensors must be equal on all ranks, as DDP's averaged gradients make
            them. DTensors may lie anyhow; their mesh says which ranks take part.
        compute: From whole plain matrices of any shapes, none as well, to their updates of the same shapes. It is
            called with what this rank owns, up to once for each way in which matrices lie.
        group: Ranks that share the work on plain tensors; None: all of them, one without torch.distributed.
        dtype: What updates are sent in; None: the dtype of the directions. bf16 halves the traffic, and loses
            nothing when `compute` iterates in bf16. Ranks agree to the bit either way: all take what was sent.

    Returns:
        Updates in the order of the directions, each with the shape, dtype and placements of its direction.
    """
    plain, meshes = _group_by_placement(directions)
    updates = list(directions)
    if plain:
        found = _orthogonalize_replicated([directions[i] for i in plain], compute, group, dtype)
        _assign_at(updates, plain, found)
    for layout, indices in meshes.items():
        found = _orthogonalize_on_mesh(
            [cast(DTensor, directions[i]) for i in indices], *layout, compute, dtype
        )
        _assign_at(updates, indices, found)
    return updates


def row_norms(matrices: list[Tensor], dim: int) -> list[Tensor]:
    """The Euclidean norm along `dim` of each matrix, whole and plain on every rank; `dim` stays, with length 1.

    DTensors that are sharded over one mesh share one all-reduce; those that lie otherwise cost one gather each.
    """
    plain, meshes = _group_by_placement(matrices)
    norms = list(matrices)
    _assign_at(norms, plain, [_compute_norms(matrices[i], dim) for i in plain])
    for (mesh, placements), indices in meshes.items():
        members = [cast(DTensor, matrices[i]) for i in indices]
        if sharding := _find_shard_axis(placements):
            _assign_at(norms, indices, _sharded_row_norms(members, dim, mesh, *sharding))
        else:
            _assign_at(
                norms,
                indices,
                [cast(DTensor, _compute_norms(matrix, dim)).full_tensor() for matrix in members],
            )
    return norms


def _sharded_row_norms(
    matrices: list[DTensor], dim: int, mesh: DeviceMesh, axis: int, cut: int
) -> list[Tensor]:
    """Each rank puts the squares of its shard where they belong among zeros; the sum over ranks is whole."""
    group = mesh.get_group(axis)
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    shapes = [(1, m.shape[1]) if dim == 0 else (m.shape[0], 1) for m in matrices]
    sizes = [math.prod(shape) for shape in shapes]
    squares = matrices[0].to_local().new_zeros(sum(sizes))
    norms = [part.view(shape) for part, shape in zip(squares.split(sizes), shapes, strict=True)]
    for matrix, whole in zip(matrices, norms, strict=True):
        mine = whole if cut == dim else whole.narrow(cut, *_get_shard_bounds(matrix.shape[cut], rank, ranks))
        torch.square(_compute_norms(matrix.to_local(), dim), out=mine)
    dist.all_reduce(squares, group=group)
    squares.sqrt_()
    return norms


def _compute_norms(matrix: Tensor, dim: int) -> Tensor:
    return torch.linalg.vector_norm(matrix, dim=dim, keepdim=True)


def _group_by_placement(
    matrices: list[Tensor],
) -> tuple[list[int], dict[tuple[DeviceMesh, tuple[Placement, ...]], list[int]]]:
    """Indices of the plain tensors, and of the DTensors that lie alike."""
    plain: list[int] = []
    meshes: dict[tuple[DeviceMesh, tuple[Placement, ...]], list[int]] = defaultdict(list)
    for i, matrix in enumerate(matrices):
        (meshes[matrix.device_mesh, matrix.placements] if isinstance(matrix, DTensor) else plain).append(i)
    return plain, meshes


def _find_shard_axis(placements: tuple[Placement, ...]) -> tuple[int, int] | None:
    """(mesh axis, dimension) where exactly one axis cuts, and plainly, the others holding replicas; else None."""
    axes = [axis for axis, placement in enumerate(placements) if not isinstance(placement, Replicate)]
    if len(axes) == 1 and type(shard := placements[axes[0]]) is Shard:
        return axes[0], shard.dim
    return None


def _assign_at(into: list[Tensor], indices: Sequence[int], tensors: Sequence[Tensor]) -> None:
    for i, tensor in zip(indices, tensors, strict=True):
        into[i] = tensor


@lru_cache(maxsize=64)
def assign_owners(shapes: tuple[MatrixShape, ...], ranks: int) -> tuple[int, ...]:
    """The rank that computes each matrix: the dearest first, each to the rank with the least work so far.

    (Graham 1969: the busiest rank has at most 4/3 of the best possible.) The same on every rank.
    """
    owner = [0] * len(shapes)
    loads = [(0, rank) for rank in range(ranks)]
    for i in sorted(range(len(shapes)), key=lambda i: -newton_schulz_flops(*shapes[i])):
        load, rank = loads[0]
        owner[i] = rank
        heapq.heapreplace(loads, (load + newton_schulz_flops(*shapes[i]), rank))
    return tuple(owner)


def newton_schulz_flops(rows: int, columns: int) -> int:
    """Floating-point operations of one Newton–Schulz iteration: 4·m²·n + 2·m³, m the smaller side."""
    m, n = sorted((rows, columns))
    return 4 * m * m * n + 2 * m**3


def _orthogonalize_on_mesh(
    directions: list[DTensor],
    mesh: DeviceMesh,
    placements: tuple[Placement, ...],
    compute: UpdateFunction,
    dtype: torch.dtype | None,
) -> list[Tensor]:
    """DTensors that lie alike. Replicas (HSDP) each do the whole work of their shards."""
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
    """A DTensor of any placements, gathered and computed on every rank; one at a time bounds the memory."""
    (update,) = compute([direction.full_tensor()])
    everywhere = [Replicate()] * direction.device_mesh.ndim
    whole = DTensor.from_local(update, direction.device_mesh, everywhere, run_check=False)
    return whole.redistribute(placements=direction.placements)


def _orthogonalize_replicated(
    matrices: list[Tensor], compute: UpdateFunction, group: ProcessGroup | None, dtype: torch.dtype | None
) -> list[Tensor]:
    """Matrices that every rank of `group` has: one all-gather per shape, padded to equal counts per rank."""
    if not dist.is_initialized() or dist.get_world_size(group) == 1:
        return compute(matrices)
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    shapes = tuple((m.shape[0], m.shape[1]) for m in matrices)
    owner = assign_owners(shapes, ranks)
    mine = [i for i in range(len(matrices)) if owner[i] == rank]
    computed = dict(zip(mine, compute([matrices[i] for i in mine]), strict=True))

    updates = list(matrices)
    for indices in _group_by_shape(shapes):
        owned = [[i for i in indices if owner[i] == r] for r in range(ranks)]
        slots = max(map(len, owned))
        sent = matrices[0].new_empty((slots, math.prod(shapes[indices[0]])), dtype=dtype)
        places = [slot.view(shapes[i]) for slot, i in zip(sent, owned[rank], strict=False)]
        if places:
            torch._foreach_copy_(places, [computed.pop(i) for i in owned[rank]])
        received = sent.new_empty((ranks * slots, sent.shape[1]))
        all_gather_single(received, sent, group=group)
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
    """Matrices of `shapes` cut along `dim` over the ranks of `group`: to their owner and back, by shape.

    All are collected before any is computed, so that the work is balanced over the whole model and not shape by
    shape. It costs memory for about three more shards of the matrices while it lasts.
    """
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    owner = assign_owners(shapes, ranks)
    owned = [
        [[i for i in indices if owner[i] == r] for r in range(ranks)] for indices in _group_by_shape(shapes)
    ]

    def cut(i: int, r: int) -> tuple[int, int]:
        return _get_shard_bounds(shapes[i][dim], r, ranks)

    def shard_shape(i: int, r: int) -> MatrixShape:
        length = cut(i, r)[1]
        return (length, shapes[i][1]) if dim == 0 else (shapes[i][0], length)

    matrices: dict[int, Tensor] = {}
    for of_rank in owned:
        outgoing = [[shards[i] for i in members] for members in of_rank]
        incoming = [[shard_shape(i, r) for i in of_rank[rank]] for r in range(ranks)]
        parts = _all_to_all(outgoing, incoming, shards[0], group)
        for i, *cuts in zip(of_rank[rank], *parts, strict=True):
            matrices[i] = torch.cat(cuts, dim)
    updates = dict(zip(matrices, compute(list(matrices.values())), strict=True))

    result = list(shards)
    for of_rank in owned:
        outgoing = [[updates[i].narrow(dim, *cut(i, r)) for i in of_rank[rank]] for r in range(ranks)]
        incoming = [[shard_shape(i, rank) for i in members] for members in of_rank]
        parts = _all_to_all(outgoing, incoming, shards[0], group, dtype)
        for members, pieces in zip(of_rank, parts, strict=True):
            _assign_at(result, members, pieces)
    return result


def _all_to_all(
    outgoing: list[list[Tensor]],
    incoming: list[list[MatrixShape]],
    like: Tensor,
    group: ProcessGroup,
    dtype: torch.dtype | None = None,
) -> list[list[Tensor]]:
    """One all-to-all: `outgoing[r]` goes to rank r; tensors of the shapes `incoming[r]` come from rank r.

    They travel in `dtype` and arrive in that of `like`. Sizes are exact, so uneven and empty shards are no matter.
    """
    flat = [tensor.reshape(-1) for tensors in outgoing for tensor in tensors]
    sent = torch.cat(flat or [like.new_empty(0)]).to(dtype or like.dtype)
    sizes = [[math.prod(shape) for shape in shapes] for shapes in incoming]
    received = sent.new_empty(sum(map(sum, sizes)))
    dist.all_to_all_single(
        received,
        sent,
        output_split_sizes=[sum(of_rank) for of_rank in sizes],
        input_split_sizes=[sum(t.numel() for t in tensors) for tensors in outgoing],
        group=group,
    )
    parts = iter(received.to(like.dtype).split([size for of_rank in sizes for size in of_rank]))
    return [[next(parts).view(shape) for shape in shapes] for shapes in incoming]


def _get_shard_bounds(length: int, rank: int, ranks: int) -> tuple[int, int]:
    """Start and length of a rank's shard, as `torch.chunk` and DTensor cut; the last ones may be empty."""
    size = -(-length // ranks)
    start = min(length, size * rank)
    return start, min(length, start + size) - start


def _group_by_shape(shapes: Sequence[MatrixShape]) -> list[list[int]]:
    """Indices of each shape up to transposition, in order of first appearance."""
    found: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, shape in enumerate(shapes):
        found[tuple(sorted(shape))].append(i)
    return list(found.values())
