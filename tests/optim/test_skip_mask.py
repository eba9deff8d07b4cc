"""A step that is masked out leaves weights and state unchanged, to the bit, and does not affect later steps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from host_reads import HostReadRecorder
from process_group import run_on_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from krill.optim.muon import Muon
from krill.optim.skip_mask import SkipMask, supports_found_inf, wrap_step_skip

SHAPES = [(24, 24), (16, 32), (32, 16), (24, 24), (50, 8), (8,)]
NAN = float("nan")
MakeOptimizer = Callable[[list[Tensor]], torch.optim.Optimizer]


def make_muon(params: list[Tensor], adamw: dict[str, Any] | None = None, **options: Any) -> Muon:
    matrices = {"params": params[:4], "kind": "muon", "lr": 2e-2, **options}
    return Muon([matrices, {"params": params[4:], "kind": "adamw", "lr": 3e-3, **(adamw or {})}])


OPTIMIZERS: dict[str, MakeOptimizer] = {
    "rms": lambda params: make_muon(params, {"eps_before_correction": True}),
    "spectral": lambda params: make_muon(params, scale="spectral"),
    "cautious": lambda params: make_muon(params, cautious=True),
    "normuon": lambda params: make_muon(params, normuon=True, nesterov=False),
    "polar express": lambda params: make_muon(params, ns_coefficients="polar_express"),
    "adamw": lambda params: torch.optim.AdamW(params, lr=1e-3, fused=True),
}


def make_parameters() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    with torch.no_grad():
        for p in params:
            p.view(-1)[:2] = torch.tensor([0.0, -0.0])
    return params


def fill_gradients(params: list[Tensor], step: int, bad: float | None = None) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)
        if bad is not None:
            p.grad.view(-1)[3:] = bad


def get_bits(optimizer: torch.optim.Optimizer, params: list[Tensor]) -> list[Tensor]:
    state = optimizer.state_dict()["state"]
    tensors = [*params, *(state[i][name] for i in sorted(state) for name in sorted(state[i]))]
    return [tensor.detach().clone().view(torch.int32) for tensor in tensors]


def is_equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


@pytest.mark.parametrize("bad", [NAN, float("inf"), 1e3], ids=["nan", "inf", "finite"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_masked_step_changes_nothing(name: str, bad: float) -> None:
    params, expected = make_parameters(), make_parameters()
    optimizer, plain = OPTIMIZERS[name](params), OPTIMIZERS[name](expected)
    for step in range(6):
        is_bad = step in (2, 3)
        optimizer.found_inf = torch.tensor(float(is_bad))  # type: ignore[attr-defined]
        fill_gradients(params, step, bad if is_bad else None)
        before = get_bits(optimizer, params) if is_bad else []
        optimizer.step()
        if is_bad:
            assert is_equal(get_bits(optimizer, params), before)
        else:
            fill_gradients(expected, step)
            plain.step()
    assert is_equal(get_bits(optimizer, params), get_bits(plain, expected))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_first_step_may_be_masked(name: str) -> None:
    params, expected = make_parameters(), make_parameters()
    optimizer, plain = OPTIMIZERS[name](params), OPTIMIZERS[name](expected)
    optimizer.found_inf = torch.tensor(1.0)  # type: ignore[attr-defined]
    fill_gradients(params, 0, NAN)
    optimizer.step()
    optimizer.found_inf = torch.tensor(0.0)  # type: ignore[attr-defined]
    for each, its_params in ((optimizer, params), (plain, expected)):
        fill_gradients(its_params, 1)
        each.step()
    assert is_equal(get_bits(optimizer, params), get_bits(plain, expected))


def test_a_copy_of_the_optimizer_has_the_corrected_step_counts() -> None:
    params = make_parameters()
    optimizer = OPTIMIZERS["rms"](params)
    for step, is_bad in enumerate((False, True)):
        optimizer.found_inf = torch.tensor(float(is_bad))  # type: ignore[attr-defined]
        fill_gradients(params, step)
        optimizer.step()
    twin = copy.deepcopy(optimizer)
    assert [float(state["step"]) for state in twin.state.values() if "step" in state] == [1.0, 1.0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_host_reads_only_the_step_counts_that_it_stores(name: str) -> None:
    params = make_parameters()
    optimizer = OPTIMIZERS[name](params)
    flag = torch.tensor(0.0)
    optimizer.found_inf = flag  # type: ignore[attr-defined]
    with HostReadRecorder() as reads:
        for step in range(3):
            flag.fill_(float(step == 1))
            fill_gradients(params, step)
            optimizer.step()
    counts = {state["step"].data_ptr() for state in optimizer.state.values() if "step" in state}
    assert {tensor.data_ptr() for tensor in reads.tensors} <= counts
    with HostReadRecorder() as reads:
        bool(flag)
    assert reads.tensors  # the recorder does notice a read


@pytest.mark.parametrize(
    "columns", [slice(None), slice(0, 3)], ids=["contiguous", "columns of a wider tensor"]
)
def test_mask_operations(columns: slice) -> None:
    for flag, is_bad in ((0.0, False), (1.0, True)):
        mask = SkipMask(torch.tensor(flag))
        values, source, update = (
            torch.full((4, 5), NAN)[:, columns],
            torch.randn(4, 5)[:, columns],
            torch.randn(4, 5)[:, columns],
        )
        source_before, before = source.clone(), update.clone()
        mask.replace([values], [source])
        mask.zero([update])
        assert torch.equal(source, source_before)
        assert torch.equal(values, source) if is_bad else values.isnan().all()
        assert torch.equal(update, torch.zeros_like(update) if is_bad else before)
        assert float(mask.get_factor(0.3)) == (1.0 if is_bad else pytest.approx(0.3))


def test_an_optimizer_that_does_not_read_found_inf_is_not_called_in_a_bad_step() -> None:
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    optimizer = torch.optim.SGD([p], lr=1.0)
    assert not supports_found_inf(optimizer)
    flag = torch.tensor(1.0)
    wrap_step_skip(lambda: bool(flag), optimizer)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    optimizer.step()
    assert p.tolist() == [1.0, 1.0, 1.0]
    schedule.step()
    flag.fill_(0.0)
    optimizer.step()
    assert p.tolist() == [0.0, 0.0, 0.0]


def _step_on_shards() -> bool:
    mesh = init_device_mesh("cpu", (2,))
    for dim in (0, 1):
        params = [
            nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(dim if p.ndim == 2 else 0)]))
            for p in make_parameters()
        ]
        for make in (OPTIMIZERS["cautious"], OPTIMIZERS["normuon"]):
            optimizer = make(params)
            for step in range(3):
                is_bad = step == 1
                optimizer.found_inf = torch.tensor(float(is_bad))  # type: ignore[attr-defined]
                plain = make_parameters()
                fill_gradients(plain, step, NAN if is_bad else None)
                for p, full in zip(params, plain, strict=True):
                    p.grad = distribute_tensor(full.grad, mesh, p.placements)  # type: ignore[attr-defined]
                before = _get_local_bits(optimizer, params) if is_bad else []
                optimizer.step()
                assert not is_bad or is_equal(_get_local_bits(optimizer, params), before)
            assert all(
                tensor.view(torch.float32).isfinite().all() for tensor in _get_local_bits(optimizer, params)
            )
    return True


def _get_local_bits(optimizer: torch.optim.Optimizer, params: list[Tensor]) -> list[Tensor]:
    state = optimizer.state_dict()["state"]
    tensors = [*params, *(state[i][name] for i in sorted(state) for name in sorted(state[i]))]
    return [
        (t.to_local() if isinstance(t, DTensor) else t).detach().contiguous().clone().view(torch.int32)
        for t in tensors
    ]


def test_a_masked_step_does_not_change_shards(tmp_path: Path) -> None:
    assert run_on_ranks(2, _step_on_shards, folder=tmp_path) == [True, True]
