"""Cautious decay, NorMuon and fused projections on two ranks: what one process does, sharded or replicated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_distributed import error, on_ranks, whole
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from krill.optim.muon import Muon


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


def _train(model: nn.Module, optimizer: Muon, rank: int = 0, ranks: int = 1) -> None:
    for step in range(4):
        x = torch.randn(6, 5, 24, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x[rank::ranks]).backward()
        optimizer.step()


def _trained(how: str) -> dict[str, Tensor]:
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    model = Model()
    if how == "fsdp2":
        fully_shard(model, mesh=init_device_mesh("cpu", (ranks,)))
    wrapped = DistributedDataParallel(model) if how == "ddp" else model
    optimizer = _optimizer(model)
    _train(wrapped, optimizer, rank, ranks)
    # As accelerate saves it: an option that is neither number nor text fails here.
    get_optimizer_state_dict(model, optimizer, options=StateDictOptions(cpu_offload=True))
    return whole(dict(model.named_parameters()))


@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
def test_two_ranks_do_what_one_process_does(how: str, tmp_path: Path) -> None:
    model = Model()
    start = whole(dict(model.named_parameters()))
    _train(model, _optimizer(model))
    wanted = whole(dict(model.named_parameters()))
    first, second = on_ranks(2, _trained, how, folder=tmp_path)
    assert error(first, wanted, start) <= 1e-4
    assert all(torch.equal(first[name], second[name]) for name in first)
