"""Muon on several ranks equals one process with the full batch, and the ranks agree to the bit.

Ranks are processes on this machine, connected by gloo. Newton–Schulz runs in fp32, so that only the distribution
differs (in bf16 the order of additions costs about 5e-2; in fp32 about 1e-5).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from distributed_states import (
    compute_update_error,
    gather_full_tensors,
    is_equal,
    reject_as_torch_2_11,
    restore_state,
    save_state,
)
from hypothesis import given
from hypothesis import strategies as st
from process_group import run_on_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from krill.optim.distributed import (
    assign_owners,
    compute_newton_schulz_flops,
    lerp_shards,
    orthogonalize_distributed,
)
from krill.optim.muon import Muon
from krill.optim.newton_schulz import orthogonalize

WIDTH, LAYERS, ROWS, STEPS = 24, 3, 6, 5
LAYER_SHAPES = [(WIDTH, WIDTH)] * 4 + [(64, WIDTH), (64, WIDTH), (WIDTH, 64), (81, WIDTH), (1, 81)]
MATRICES = LAYER_SHAPES * LAYERS
SHAPE_GROUPS = len({tuple(sorted(shape)) for shape in MATRICES})


class Layer(nn.Module):
    """A Llama layer's seven matrices, one of 81 rows (uneven on two ranks), and one of a single row (empty shard)."""

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
    """Muon for the matrices, AdamW for the rest; with `fused` each matrix of 81 rows is two projections."""
    members: dict[str, list[nn.Parameter]] = {"rest": [], "matrices": [], "fused": []}
    for name, p in model.named_parameters():
        group = "fused" if fused and "uneven" in name else "matrices"
        members[group if p.ndim == 2 and "embedding" not in name else "rest"].append(p)
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
    world_size: int = 1,
    backward: Any = Tensor.backward,
) -> None:
    """Trains on this rank's share of the batch; all ranks together see the full batch."""
    for step in steps:
        tokens = torch.randint(50, (ROWS, 7), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        backward(model(tokens[rank::world_size]))
        optimizer.step()


def get_momentum(model: nn.Module, optimizer: Any) -> dict[str, Tensor]:
    """Returns the momentum of each matrix by parameter name."""
    state = {name: optimizer.state[p] for name, p in model.named_parameters()}
    return {name: entry["momentum_buffer"] for name, entry in state.items() if "momentum_buffer" in entry}


@pytest.fixture(scope="module")
def initial() -> dict[str, Tensor]:
    return gather_full_tensors(dict(Model().named_parameters()))


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    """Returns the parameters after all steps in one process."""
    model = Model()
    train_steps(model, build_muon(model), range(STEPS))
    return gather_full_tensors(dict(model.named_parameters()))


def measure_step_cost(optimizer: Any) -> dict[str, Any]:
    """Counts the matrix-product FLOPs and the collectives of this rank in one more step."""
    with CommDebugMode() as collectives, FlopCounterMode(display=False) as products:
        optimizer.step()
    counts = {str(operation): count for operation, count in collectives.get_comm_counts().items()}
    return {"flops": products.get_total_flops(), "collectives": counts}


def train_with_ddp() -> dict[str, Any]:
    model, rank, world_size = Model(), dist.get_rank(), dist.get_world_size()
    optimizer = build_muon(model)
    train_steps(DistributedDataParallel(model), optimizer, range(STEPS), rank, world_size)
    return {"params": gather_full_tensors(dict(model.named_parameters())), **measure_step_cost(optimizer)}


def train_with_fsdp(
    steps: range = range(STEPS), source: Path | None = None, target: Path | None = None, fused: bool = False
) -> dict[str, Any]:
    """Trains `steps` from the checkpoint `source` and saves the checkpoint `target`."""
    reject_as_torch_2_11()
    model, rank, world_size = build_sharded_model(), dist.get_rank(), dist.get_world_size()
    optimizer = build_muon(model, fused)
    if source:
        restore_state(source, model, optimizer)
    train_steps(model, optimizer, steps, rank, world_size)
    params, momentum = dict(model.named_parameters()), get_momentum(model, optimizer)
    result = {"params": gather_full_tensors(params), "momentum": gather_full_tensors(momentum)}
    result["shards"] = {name: tuple(t.to_local().shape) for name, t in momentum.items()}
    if target:
        save_state(target, model, optimizer)
        restored = build_sharded_model()
        restore_state(target, restored, optimizer := build_muon(restored))
        result |= {
            "restored_momentum": gather_full_tensors(get_momentum(restored, optimizer)),
            "restored_params": gather_full_tensors(dict(restored.named_parameters())),
        }
    return result | measure_step_cost(optimizer) if steps == range(STEPS) else result


def build_sharded_model() -> Model:
    model = Model()
    for layer in model.layers:
        fully_shard(layer)
    fully_shard(model)
    return model


def train_with_accelerate(folder: Path) -> dict[str, Any]:
    """Trains like the Trainer under FSDP2: the optimizer is built before prepare() shards its model."""
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
    # accelerate selects FSDP on accelerators only
    PartialState().distributed_type = accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin

    def prepare() -> tuple[Any, Any]:
        model = Model()
        return accelerator.prepare(model, build_muon(model))  # type: ignore[no-any-return]

    model, optimizer = prepare()
    train_steps(model, optimizer, range(STEPS), dist.get_rank(), dist.get_world_size(), accelerator.backward)
    momentum = get_momentum(model, optimizer)
    assert all(t.placements == (Shard(0),) for t in momentum.values())
    save_fsdp_optimizer(plugin, accelerator, optimizer, model, folder)
    accelerator.free_memory()
    restored, restored_optimizer = prepare()
    load_fsdp_optimizer(plugin, accelerator, restored_optimizer, restored, folder)
    return {
        "params": gather_full_tensors(dict(model.named_parameters())),
        "momentum": gather_full_tensors(momentum),
        "restored_momentum": gather_full_tensors(get_momentum(restored, restored_optimizer)),
    }


@pytest.mark.parametrize("ranks", [2, 3])
def test_ddp_equals_one_process_and_distributes_the_work(ranks, initial, expected, tmp_path):
    model = Model()
    train_steps(model, optimizer := build_muon(model), range(1))
    total_flops = measure_step_cost(optimizer)["flops"]
    results = run_on_ranks(ranks, train_with_ddp, folder=tmp_path)
    for rank_result in results:
        assert compute_update_error(rank_result["params"], expected, initial) <= 1e-4
        assert is_equal(rank_result["params"], results[0]["params"])
        assert rank_result["collectives"] == {"c10d._allgather_base_": SHAPE_GROUPS}
        assert rank_result["flops"] <= (0.55 if ranks == 2 else 0.4) * total_flops
    assert sum(rank_result["flops"] for rank_result in results) == total_flops


def test_fsdp2_equals_one_process_with_sharded_momentum(initial, expected, tmp_path):
    results = run_on_ranks(2, train_with_fsdp, folder=tmp_path)
    for rank_result in results:
        assert compute_update_error(rank_result["params"], expected, initial) <= 1e-4
        assert rank_result["collectives"] == {"c10d.alltoall_base_": 2 * SHAPE_GROUPS}
    assert len(MATRICES) >= 2 * SHAPE_GROUPS
    assert [rank_result["shards"]["layers.0.uneven.weight"] for rank_result in results] == [
        (41, WIDTH),
        (40, WIDTH),
    ]
    assert [rank_result["shards"]["layers.2.single.weight"] for rank_result in results] == [(1, 81), (0, 81)]
    flops = [rank_result["flops"] for rank_result in results]
    assert max(flops) <= 0.55 * sum(flops)


def test_fused_projections_are_orthogonalized_as_a_whole_if_sharded(initial, tmp_path):
    model = Model()
    train_steps(model, build_muon(model, fused=True), range(STEPS))
    expected = gather_full_tensors(dict(model.named_parameters()))
    for rank_result in run_on_ranks(2, train_with_fsdp, range(STEPS), None, None, True, folder=tmp_path):
        assert compute_update_error(rank_result["params"], expected, initial) <= 1e-4


def test_accelerate_shards_the_model_of_an_existing_optimizer(initial, expected, tmp_path):
    for rank_result in run_on_ranks(2, train_with_accelerate, tmp_path / "saved", folder=tmp_path):
        assert compute_update_error(rank_result["params"], expected, initial) <= 1e-4
        assert len(rank_result["momentum"]) == len(MATRICES)
        assert is_equal(rank_result["restored_momentum"], rank_result["momentum"])


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_checkpoints_are_loaded_on_another_number_of_ranks(initial, expected, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    model = Model()
    train_steps(model, optimizer := build_muon(model), range(1))
    save_state(one, model, optimizer)

    result = run_on_ranks(2, train_with_fsdp, range(1, 3), one, two, folder=tmp_path)[0]
    assert is_equal(result["restored_momentum"], result["momentum"])
    assert is_equal(result["restored_params"], result["params"])

    model = Model()
    restore_state(two, model, optimizer := build_muon(model))
    assert is_equal(gather_full_tensors(dict(model.named_parameters())), result["params"])
    assert is_equal(gather_full_tensors(get_momentum(model, optimizer)), result["momentum"])
    train_steps(model, optimizer, range(3, STEPS))
    assert (
        compute_update_error(gather_full_tensors(dict(model.named_parameters())), expected, initial) <= 1e-4
    )


def make_directions() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator) for shape in [*LAYER_SHAPES, (2, 3), (3, 2)]]


def compute_reference_updates(matrices: list[Tensor]) -> list[Tensor]:
    assert all(type(m) is Tensor for m in matrices)
    return [orthogonalize(m[None])[0] for m in matrices]


@torch.no_grad()
def orthogonalize_in_every_layout() -> list[dict[str, Any]]:
    line = init_device_mesh("cpu", (2,))
    two_replicas, two_shards = init_device_mesh("cpu", (2, 1)), init_device_mesh("cpu", (1, 2))
    layouts = [
        (line, [Shard(0)]), (line, [Shard(1)]), (line, [Replicate()]),
        (two_shards, [Replicate(), Shard(0)]), (two_replicas, [Replicate(), Shard(0)]),
        (two_shards, [Shard(0), Shard(1)]),
    ]  # fmt: skip
    results = []
    for mesh, placements in layouts:
        # plain tensors among them, sent in another dtype
        directions = [
            distribute_tensor(d, mesh, placements) if i % 3 else d for i, d in enumerate(make_directions())
        ]
        updates = orthogonalize_distributed(directions, compute_reference_updates, dtype=torch.bfloat16)
        lerped = lerp_shards(directions, updates, 0.3)
        plain = [
            list(gather_full_tensors(dict(enumerate(tensors))).values()) for tensors in (directions, updates)
        ]
        assert is_equal(
            gather_full_tensors(dict(enumerate(lerped))), dict(enumerate(torch._foreach_lerp(*plain, 0.3)))
        )
        for update, direction in zip(updates, directions, strict=True):
            assert (update.shape, update.dtype) == (direction.shape, direction.dtype)
            if isinstance(direction, DTensor):
                assert update.placements == direction.placements
                assert update.to_local().shape == direction.to_local().shape
            else:
                assert type(update) is Tensor
        results.append(gather_full_tensors(dict(enumerate(updates))))
    return results


def test_updates_have_the_placements_of_their_directions(tmp_path):
    expected = dict(enumerate(compute_reference_updates(make_directions())))
    first, second = run_on_ranks(2, orthogonalize_in_every_layout, folder=tmp_path)
    for on_first, on_second in zip(first, second, strict=True):
        assert is_equal(on_first, on_second)
        for i, update in on_first.items():
            torch.testing.assert_close(update, expected[i], rtol=2**-8, atol=0)


def test_one_process_computes_all_updates():
    directions = make_directions()
    updates = orthogonalize_distributed(directions, compute_reference_updates, dtype=torch.bfloat16)
    assert is_equal(dict(enumerate(updates)), dict(enumerate(compute_reference_updates(directions))))
    assert orthogonalize_distributed([], compute_reference_updates) == []


@given(
    st.lists(st.tuples(st.integers(1, 4096), st.integers(1, 4096)), min_size=1, max_size=60),
    st.integers(1, 9),
)
def test_no_rank_exceeds_its_share_by_more_than_one_matrix(shapes, ranks):
    loads = [0] * ranks
    for shape, rank in zip(shapes, assign_owners(tuple(shapes), ranks), strict=True):
        loads[rank] += compute_newton_schulz_flops(*shape)
    assert max(loads) <= sum(loads) / ranks + max(compute_newton_schulz_flops(*shape) for shape in shapes)


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_a_model_of_27_layers_is_distributed_evenly(ranks):
    layer = [(768, 768), (256, 768), (256, 768), (768, 768), (1920, 768), (1920, 768), (768, 1920)]
    loads = [0] * ranks
    for shape, rank in zip(layer * 27, assign_owners(tuple(layer * 27), ranks), strict=True):
        loads[rank] += compute_newton_schulz_flops(*shape)
    assert max(loads) <= 1.01 * sum(loads) / ranks
