"""Muon on several ranks: the result of one process with the whole batch, from ranks that agree to the bit.

Ranks are processes on this machine, joined by gloo. Newton–Schulz runs in fp32, so that what differs is the
distribution alone (in bf16 the order of additions costs some 5e-2; in fp32 about 1e-5).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from ranks import on_ranks
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from krill.optim.distributed import assign_owners, newton_schulz_flops, orthogonalize_distributed
from krill.optim.muon import Muon
from krill.optim.newton_schulz import orthogonalize

WIDTH, LAYERS, ROWS, STEPS = 24, 3, 6, 5
LAYER_SHAPES = [(WIDTH, WIDTH)] * 4 + [(64, WIDTH), (64, WIDTH), (WIDTH, 64), (81, WIDTH), (1, 81)]
MATRICES = LAYER_SHAPES * LAYERS
SHAPE_GROUPS = len({tuple(sorted(shape)) for shape in MATRICES})


class Layer(nn.Module):
    """A Llama layer's seven matrices, one of 81 rows (uneven on two ranks), one of a single row (an empty shard)."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(WIDTH, 64, bias=False) for _ in range(2))
        self.down = nn.Linear(64, WIDTH, bias=False)
        self.uneven, self.single = nn.Linear(WIDTH, 81, bias=False), nn.Linear(81, 1, bias=False)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.o(torch.tanh(self.q(x)) * torch.tanh(self.k(x)) + self.v(x))
        x = x + self.down(torch.tanh(self.gate(x)) * self.up(x))
        return x + self.norm(x) * self.single(torch.tanh(self.uneven(x)))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(50, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return (x * torch.linspace(-1, 1, WIDTH)).sum(-1).square().mean()


def build_muon(model: nn.Module, fused: bool = False) -> Muon:
    """Muon for the matrices, AdamW for the rest; fused: the matrices of 81 rows are two projections each."""
    members: dict[str, list[nn.Parameter]] = {"rest": [], "matrices": [], "fused": []}
    for name, p in model.named_parameters():
        two = "fused" if fused and "uneven" in name else "matrices"
        members[two if p.ndim == 2 and "embedding" not in name else "rest"].append(p)
    muon = {"kind": "muon", "lr": 2e-2}
    options = {"rest": {"kind": "adamw", "lr": 3e-3}, "matrices": muon, "fused": {**muon, "parts": (27, 54)}}
    return Muon(
        [{"name": name, "params": params, **options[name]} for name, params in members.items() if params]
    )


def train_steps(
    model: nn.Module,
    optimizer: Any,
    steps: range,
    rank: int = 0,
    ranks: int = 1,
    backward: Any = Tensor.backward,
) -> None:
    """Steps on this rank's share of the batch; all ranks together see the whole batch."""
    for step in steps:
        tokens = torch.randint(50, (ROWS, 7), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        backward(model(tokens[rank::ranks]))
        optimizer.step()


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: (t.full_tensor() if isinstance(t, DTensor) else t).detach().clone()
        for name, t in tensors.items()
    }


def get_momentum(model: nn.Module, optimizer: Any) -> dict[str, Tensor]:
    """The momentum of each matrix, by the name of its parameter."""
    state = {name: optimizer.state[p] for name, p in model.named_parameters()}
    return {name: of["momentum_buffer"] for name, of in state.items() if "momentum_buffer" in of}


def same(found: dict[Any, Tensor], wanted: dict[Any, Tensor]) -> bool:
    """Equal to the bit."""
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def error(found: dict[str, Tensor], wanted: dict[str, Tensor], start: dict[str, Tensor]) -> float:
    """Largest relative Frobenius error of the cumulative updates."""
    assert found.keys() == wanted.keys()
    return max(float((found[n] - wanted[n]).norm() / (wanted[n] - start[n]).norm()) for n in wanted)


@pytest.fixture(scope="module")
def start() -> dict[str, Tensor]:
    return whole(dict(Model().named_parameters()))


@pytest.fixture(scope="module")
def wanted() -> dict[str, Tensor]:
    """The parameters after all steps in one process."""
    model = Model()
    train_steps(model, build_muon(model), range(STEPS))
    return whole(dict(model.named_parameters()))


def measure_step_cost(optimizer: Any) -> dict[str, Any]:
    """Matrix-product FLOPs and collectives of this rank in one more step."""
    with CommDebugMode() as collectives, FlopCounterMode(display=False) as products:
        optimizer.step()
    counts = {str(operation): count for operation, count in collectives.get_comm_counts().items()}
    return {"flops": products.get_total_flops(), "collectives": counts}


def train_with_ddp() -> dict[str, Any]:
    model, rank, ranks = Model(), dist.get_rank(), dist.get_world_size()
    optimizer = build_muon(model)
    train_steps(DistributedDataParallel(model), optimizer, range(STEPS), rank, ranks)
    return {"params": whole(dict(model.named_parameters())), **measure_step_cost(optimizer)}


def train_with_fsdp(
    steps: range = range(STEPS), old: Path | None = None, new: Path | None = None, fused: bool = False
) -> dict[str, Any]:
    """Train `steps`, from the checkpoint `old` on and to the checkpoint `new`."""
    model, rank, ranks = build_sharded_model(), dist.get_rank(), dist.get_world_size()
    optimizer = build_muon(model, fused)
    if old:
        restore(old, model, optimizer)
    train_steps(model, optimizer, steps, rank, ranks)
    params, momentum = dict(model.named_parameters()), get_momentum(model, optimizer)
    found = {"params": whole(params), "momentum": whole(momentum)}
    found["shards"] = {name: tuple(t.to_local().shape) for name, t in momentum.items()}
    if new:
        save(new, model, optimizer)
        again = build_sharded_model()
        restore(new, again, optimizer := build_muon(again))
        found |= {
            "again": whole(get_momentum(again, optimizer)),
            "again_params": whole(dict(again.named_parameters())),
        }
    return found | measure_step_cost(optimizer) if steps == range(STEPS) else found


def build_sharded_model() -> Model:
    model = Model()
    for layer in model.layers:
        fully_shard(layer)
    fully_shard(model)
    return model


def save(folder: Path, model: nn.Module, optimizer: Any) -> None:
    of_model, of_optimizer = get_state_dict(model, optimizer)
    dcp.save({"model": of_model, "optimizer": of_optimizer}, checkpoint_id=folder)


def restore(folder: Path, model: nn.Module, optimizer: Any) -> None:
    of_model, of_optimizer = get_state_dict(model, optimizer)
    dcp.load({"model": of_model, "optimizer": of_optimizer}, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=of_model, optim_state_dict=of_optimizer)


def train_with_accelerate(folder: Path) -> dict[str, Any]:
    """As the Trainer does under FSDP2: the optimizer is made before prepare() shards the model below it."""
    from accelerate import Accelerator, PartialState
    from accelerate.utils import (
        DistributedType,
        FullyShardedDataParallelPlugin,
        load_fsdp_optimizer,
        save_fsdp_optimizer,
    )

    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["Layer"],
        cpu_ram_efficient_loading=False,
        state_dict_type="SHARDED_STATE_DICT",
    )
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
    # accelerate itself chooses FSDP on accelerators only
    PartialState().distributed_type = accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin

    def prepared() -> tuple[Any, Any]:
        model = Model()
        return accelerator.prepare(model, build_muon(model))  # type: ignore[no-any-return]

    model, optimizer = prepared()
    train_steps(model, optimizer, range(STEPS), dist.get_rank(), dist.get_world_size(), accelerator.backward)
    momentum = get_momentum(model, optimizer)
    assert all(t.placements == (Shard(0),) for t in momentum.values())
    save_fsdp_optimizer(plugin, accelerator, optimizer, model, folder)
    accelerator.free_memory()
    again, fresh = prepared()
    load_fsdp_optimizer(plugin, accelerator, fresh, again, folder)
    return {
        "params": whole(dict(model.named_parameters())),
        "momentum": whole(momentum),
        "again": whole(get_momentum(again, fresh)),
    }


@pytest.mark.parametrize("ranks", [2, 3])
def test_ddp_does_what_one_process_does_and_shares_the_work(ranks, start, wanted, tmp_path):
    model = Model()
    train_steps(model, optimizer := build_muon(model), range(1))
    alone = measure_step_cost(optimizer)["newton_schulz_flops"]
    found = on_ranks(ranks, train_with_ddp, folder=tmp_path)
    for of_rank in found:
        assert error(of_rank["params"], wanted, start) <= 1e-4
        assert same(of_rank["params"], found[0]["params"])
        assert of_rank["collectives"] == {"c10d._allgather_base_": SHAPE_GROUPS}
        assert of_rank["flops"] <= (0.55 if ranks == 2 else 0.4) * alone
    assert sum(of_rank["flops"] for of_rank in found) == alone


def test_fsdp2_does_what_one_process_does_with_sharded_momentum(start, wanted, tmp_path):
    found = on_ranks(2, train_with_fsdp, folder=tmp_path)
    for of_rank in found:
        assert error(of_rank["params"], wanted, start) <= 1e-4
        assert of_rank["collectives"] == {"c10d.alltoall_base_": 2 * SHAPE_GROUPS}
    assert len(MATRICES) >= 2 * SHAPE_GROUPS
    assert [of_rank["shards"]["layers.0.uneven.weight"] for of_rank in found] == [(41, WIDTH), (40, WIDTH)]
    assert [of_rank["shards"]["layers.2.single.weight"] for of_rank in found] == [(1, 81), (0, 81)]
    flops_of = [of_rank["flops"] for of_rank in found]
    assert max(flops_of) <= 0.55 * sum(flops_of)


def test_fused_projections_are_whole_where_they_are_split(start, tmp_path):
    model = Model()
    train_steps(model, build_muon(model, fused=True), range(STEPS))
    wanted = whole(dict(model.named_parameters()))
    for of_rank in on_ranks(2, train_with_fsdp, range(STEPS), None, None, True, folder=tmp_path):
        assert error(of_rank["params"], wanted, start) <= 1e-4


def test_accelerate_shards_below_an_optimizer_that_exists(start, wanted, tmp_path):
    for of_rank in on_ranks(2, train_with_accelerate, tmp_path / "saved", folder=tmp_path):
        assert error(of_rank["params"], wanted, start) <= 1e-4
        assert len(of_rank["momentum"]) == len(MATRICES)
        assert same(of_rank["again"], of_rank["momentum"])


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_checkpoints_go_from_one_rank_to_two_and_back(start, wanted, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    model = Model()
    train_steps(model, optimizer := build_muon(model), range(1))
    save(one, model, optimizer)

    found = on_ranks(2, train_with_fsdp, range(1, 3), one, two, folder=tmp_path)[0]
    assert same(found["again"], found["momentum"])
    assert same(found["again_params"], found["params"])

    model = Model()
    restore(two, model, optimizer := build_muon(model))
    assert same(whole(dict(model.named_parameters())), found["params"])
    assert same(whole(get_momentum(model, optimizer)), found["momentum"])
    train_steps(model, optimizer, range(3, STEPS))
    assert error(whole(dict(model.named_parameters())), wanted, start) <= 1e-4


def make_directions() -> list[Tensor]:
    random = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=random) for shape in [*LAYER_SHAPES, (2, 3), (3, 2)]]


def compute_reference_updates(matrices: list[Tensor]) -> list[Tensor]:
    assert all(type(m) is Tensor for m in matrices)
    return [orthogonalize(m[None])[0] for m in matrices]


@torch.no_grad()
def orthogonalize_in_every_layout() -> list[dict[str, Any]]:
    line = init_device_mesh("cpu", (2,))
    replicas, lone = init_device_mesh("cpu", (2, 1)), init_device_mesh("cpu", (1, 2))
    layouts = [
        (line, [Shard(0)]), (line, [Shard(1)]), (line, [Replicate()]),
        (lone, [Replicate(), Shard(0)]), (replicas, [Replicate(), Shard(0)]), (lone, [Shard(0), Shard(1)]),
    ]  # fmt: skip
    found = []
    for mesh, placements in layouts:
        # plain ones among them, in another dtype on the way
        given = [
            distribute_tensor(d, mesh, placements) if i % 3 else d for i, d in enumerate(make_directions())
        ]
        updates = orthogonalize_distributed(given, compute_reference_updates, dtype=torch.bfloat16)
        for update, direction in zip(updates, given, strict=True):
            assert (update.shape, update.dtype) == (direction.shape, direction.dtype)
            if isinstance(direction, DTensor):
                assert update.placements == direction.placements
                assert update.to_local().shape == direction.to_local().shape
            else:
                assert type(update) is Tensor
        found.append(whole(dict(enumerate(updates))))
    return found


def test_directions_may_lie_anyhow_and_updates_lie_like_them(tmp_path):
    wanted = dict(enumerate(compute_reference_updates(make_directions())))
    first, second = on_ranks(2, orthogonalize_in_every_layout, folder=tmp_path)
    for on_first, on_second in zip(first, second, strict=True):
        assert same(on_first, on_second)
        for i, update in on_first.items():
            torch.testing.assert_close(update, wanted[i], rtol=2**-8, atol=0)


def test_one_process_computes_them_all_itself():
    given = make_directions()
    found = orthogonalize_distributed(given, compute_reference_updates, dtype=torch.bfloat16)
    assert same(dict(enumerate(found)), dict(enumerate(compute_reference_updates(given))))
    assert orthogonalize_distributed([], compute_reference_updates) == []


@given(
    st.lists(st.tuples(st.integers(1, 4096), st.integers(1, 4096)), min_size=1, max_size=60),
    st.integers(1, 9),
)
def test_no_rank_has_more_than_its_share_and_one_matrix(shapes, ranks):
    loads = [0] * ranks
    for shape, rank in zip(shapes, assign_owners(tuple(shapes), ranks), strict=True):
        loads[rank] += newton_schulz_flops(*shape)
    assert max(loads) <= sum(loads) / ranks + max(newton_schulz_flops(*shape) for shape in shapes)


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_a_model_of_27_layers_is_shared_evenly(ranks):
    layer = [(768, 768), (256, 768), (256, 768), (768, 768), (1920, 768), (1920, 768), (768, 1920)]
    loads = [0] * ranks
    for shape, rank in zip(layer * 27, assign_owners(tuple(layer * 27), ranks), strict=True):
        loads[rank] += newton_schulz_flops(*shape)
    assert max(loads) <= 1.01 * sum(loads) / ranks
