"""Cautious decay, NorMuon and fused projections on two ranks: what one process does, sharded or replicated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import on_ranks
from test_distributed import error, restore, same, save, whole
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.parallel import DistributedDataParallel

from krill.optim.distributed import row_norms
from krill.optim.muon import Muon
from krill.training.metrics.optimizer_stats import OptimizerStats


class Model(nn.Module):
    """A fused projection, one of 81 rows that two ranks share unevenly, one of a single row, and one that is
    (in, out), head by head."""

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


def _optimizer(model: Any) -> Muon:
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
    model: nn.Module, optimizer: Muon, rank: int = 0, ranks: int = 1, steps: range = range(STEPS)
) -> None:
    for step in steps:
        x = torch.randn(6, 5, 24, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x[rank::ranks]).backward()
        optimizer.step()


def _run_two_steps(optimizer: Muon) -> tuple[dict[str, float], int]:
    """Two more on the same gradients: how many collectives the first takes, the figures of the second."""
    with CommDebugMode() as collectives:
        optimizer.step()
    seen = OptimizerStats(optimizer)
    optimizer.step()
    return seen.collect_metrics(), collectives.get_total_counts()


def _train_on_rank(how: str) -> dict[str, Any]:
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    model = Model()
    if how == "fsdp2":
        fully_shard(model, mesh=init_device_mesh("cpu", (ranks,)))
    wrapped = DistributedDataParallel(model) if how == "ddp" else model
    optimizer = _optimizer(model)
    _train(wrapped, optimizer, rank, ranks)
    # As accelerate saves it: an option that is neither number nor text fails here.
    get_optimizer_state_dict(model, optimizer, options=StateDictOptions(cpu_offload=True))
    params = whole(dict(model.named_parameters()))
    figures, collectives = _run_two_steps(optimizer)
    return {"params": params, "figures": figures, "collectives": collectives}


def _count_norm_collectives(lengths: list[tuple[int, int]], dim: int) -> int:
    """Norms of DTensors that are cut along rows, along columns and not at all; how many collectives they took."""
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    matrices = [torch.randn(shape, generator=torch.Generator().manual_seed(7)) for shape in lengths]
    wanted = [torch.linalg.vector_norm(matrix, dim=dim, keepdim=True) for matrix in matrices]
    with CommDebugMode() as collectives:
        for placement in (Shard(0), Shard(1), Replicate()):
            cut = [distribute_tensor(matrix, mesh, [placement], src_data_rank=None) for matrix in matrices]
            torch.testing.assert_close(row_norms([*cut], dim), wanted)
    return collectives.get_total_counts()


@pytest.mark.parametrize("dim", [0, 1])
def test_norms_of_rows_are_whole_wherever_the_matrices_are_cut(dim: int, tmp_path: Path) -> None:
    assert on_ranks(2, _count_norm_collectives, [(81, 5), (1, 6), (4, 4)], dim, folder=tmp_path) == [2, 2]


@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
def test_two_ranks_do_what_one_process_does(how: str, tmp_path: Path) -> None:
    model = Model()
    start = whole(dict(model.named_parameters()))
    optimizer = _optimizer(model)
    _train(model, optimizer)
    wanted = whole(dict(model.named_parameters()))
    figures, _ = _run_two_steps(optimizer)
    first, second = on_ranks(2, _train_on_rank, how, folder=tmp_path)
    assert error(first["params"], wanted, start) <= 1e-4
    assert all(torch.equal(first["params"][name], second["params"][name]) for name in wanted)
    assert first["figures"] == second["figures"] == pytest.approx(figures, rel=1e-3)
    # Three groups: of one, of three and of one matrix that share no shape, and with FSDP2 an all-reduce for each.
    assert first["collectives"] == {"ddp": 5, "fsdp2": 2 * 5 + 3}[how]


def _train_and_save(folder: Path) -> dict[str, Tensor]:
    model = Model()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = _optimizer(model)
    _train(model, optimizer, torch.distributed.get_rank(), 2, range(2))
    save(folder, model, optimizer)
    return _get_second_moments(model, optimizer)


def _get_second_moments(model: nn.Module, optimizer: Muon) -> dict[str, Tensor]:
    return {name: optimizer.state[p]["second_momentum"] for name, p in model.named_parameters()}


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_what_two_ranks_saved_goes_on_in_one(tmp_path: Path) -> None:
    model = Model()
    start = whole(dict(model.named_parameters()))
    _train(model, _optimizer(model))
    wanted = whole(dict(model.named_parameters()))
    saved = on_ranks(2, _train_and_save, tmp_path / "saved", folder=tmp_path)

    model = Model()
    restore(tmp_path / "saved", model, optimizer := _optimizer(model))
    assert all(same(_get_second_moments(model, optimizer), of_rank) for of_rank in saved)
    _train(model, optimizer, steps=range(2, STEPS))
    assert error(whole(dict(model.named_parameters())), wanted, start) <= 1e-4
