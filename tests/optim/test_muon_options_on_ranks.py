"""Cautious decay, NorMuon and fused projections on two ranks equal one process, sharded or replicated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_states import (
    compute_update_error,
    gather_full_tensors,
    is_equal,
    reject_as_torch_2_11,
    restore_state,
    save_state,
)
from process_group import run_on_ranks
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.parallel import DistributedDataParallel

from krill.optim.distributed import compute_row_norms
from krill.optim.muon import Muon
from krill.training.metrics.optimizer_stats import OptimizerStats


class Model(nn.Module):
    """A fused projection, one of 81 rows (uneven on two ranks), one of a single row, and one that is (in, out) and
    alternates by head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fused, self.uneven = nn.Linear(24, 48, bias=False), nn.Linear(48, 81, bias=False)
        self.last, self.single = nn.Linear(81, 24, bias=False), nn.Linear(24, 1, bias=False)
        self.transposed = nn.Parameter(torch.randn(24, 72) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = (x @ self.transposed).chunk(3, dim=-1)
        x = self.last(torch.tanh(self.uneven(torch.tanh(self.fused(x))))) + a * b.sigmoid() + c
        return x.square().mean() + self.single(x).square().mean()


def _build_optimizer(model: Any) -> Muon:
    group = {"kind": "muon", "lr": 2e-2, "normuon": True, "cautious": True}
    return Muon(
        [
            {"params": [model.fused.weight], "parts": (24, 12, 12), **group},
            {
                "params": [model.uneven.weight, model.last.weight, model.single.weight],
                "ns_dtype": "fp32",
                **group,
            },
            {"params": [model.transposed], "transposed": True, "blocks": 2, "parts": (12, 12, 12), **group},
        ]
    )


STEPS = 4


def _train(
    model: nn.Module, optimizer: Muon, rank: int = 0, world_size: int = 1, steps: range = range(STEPS)
) -> None:
    for step in steps:
        x = torch.randn(6, 5, 24, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x[rank::world_size]).backward()
        optimizer.step()


def _run_two_steps(optimizer: Muon) -> tuple[dict[str, float], int]:
    """Runs two more steps on the same gradients; returns metrics of the second and collectives of the first."""
    with CommDebugMode() as collectives:
        optimizer.step()
    stats = OptimizerStats(optimizer)
    optimizer.step()
    return stats.collect_metrics(), collectives.get_total_counts()


def _train_on_rank(parallelism: str) -> dict[str, Any]:
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    reject_as_torch_2_11()
    model = Model()
    if parallelism == "fsdp2":
        fully_shard(model, mesh=init_device_mesh("cpu", (world_size,)))
    wrapped = DistributedDataParallel(model) if parallelism == "ddp" else model
    optimizer = _build_optimizer(model)
    _train(wrapped, optimizer, rank, world_size)
    # accelerate saves it like this; an option that is neither a number nor a string would fail here.
    get_optimizer_state_dict(model, optimizer, options=StateDictOptions(cpu_offload=True))
    params = gather_full_tensors(dict(model.named_parameters()))
    metrics, collectives = _run_two_steps(optimizer)
    return {"params": params, "metrics": metrics, "collectives": collectives}


def _count_norm_collectives(shapes: list[tuple[int, int]], dim: int) -> int:
    """Checks norms of DTensors sharded along rows, along columns and not at all; returns the collectives."""
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    matrices = [torch.randn(shape, generator=torch.Generator().manual_seed(7)) for shape in shapes]
    expected = [torch.linalg.vector_norm(matrix, dim=dim, keepdim=True) for matrix in matrices]
    with CommDebugMode() as collectives:
        for placement in (Shard(0), Shard(1), Replicate()):
            sharded = [
                distribute_tensor(matrix, mesh, [placement], src_data_rank=None) for matrix in matrices
            ]
            torch.testing.assert_close(compute_row_norms([*sharded], dim), expected)
    return collectives.get_total_counts()


@pytest.mark.parametrize("dim", [0, 1])
def test_row_norms_are_complete_for_every_placement(dim: int, tmp_path: Path) -> None:
    assert run_on_ranks(2, _count_norm_collectives, [(81, 5), (1, 6), (4, 4)], dim, folder=tmp_path) == [2, 2]


@pytest.mark.parametrize("parallelism", ["ddp", "fsdp2"])
def test_two_ranks_equal_one_process(parallelism: str, tmp_path: Path) -> None:
    model = Model()
    initial = gather_full_tensors(dict(model.named_parameters()))
    optimizer = _build_optimizer(model)
    _train(model, optimizer)
    expected = gather_full_tensors(dict(model.named_parameters()))
    metrics, _ = _run_two_steps(optimizer)
    first, second = run_on_ranks(2, _train_on_rank, parallelism, folder=tmp_path)
    assert compute_update_error(first["params"], expected, initial) <= 1e-4
    assert all(torch.equal(first["params"][name], second["params"][name]) for name in expected)
    assert first["metrics"] == second["metrics"] == pytest.approx(metrics, rel=1e-3)
    # Three groups of one, three and one matrices, all of different shapes; with FSDP2 an all-reduce for each group.
    assert first["collectives"] == {"ddp": 5, "fsdp2": 2 * 5 + 3}[parallelism]


def _train_and_save(folder: Path) -> dict[str, Tensor]:
    model = Model()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = _build_optimizer(model)
    _train(model, optimizer, torch.distributed.get_rank(), 2, range(2))
    save_state(folder, model, optimizer)
    return _get_second_moments(model, optimizer)


def _get_second_moments(model: nn.Module, optimizer: Muon) -> dict[str, Tensor]:
    return {name: optimizer.state[p]["second_momentum"] for name, p in model.named_parameters()}


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_one_process_resumes_from_a_checkpoint_of_two_ranks(tmp_path: Path) -> None:
    model = Model()
    initial = gather_full_tensors(dict(model.named_parameters()))
    _train(model, _build_optimizer(model))
    expected = gather_full_tensors(dict(model.named_parameters()))
    saved = run_on_ranks(2, _train_and_save, tmp_path / "saved", folder=tmp_path)

    model = Model()
    restore_state(tmp_path / "saved", model, optimizer := _build_optimizer(model))
    assert all(is_equal(_get_second_moments(model, optimizer), rank_moments) for rank_moments in saved)
    _train(model, optimizer, steps=range(2, STEPS))
    assert (
        compute_update_error(gather_full_tensors(dict(model.named_parameters())), expected, initial) <= 1e-4
    )
