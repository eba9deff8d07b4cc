"""A run that cannot work is rejected before anything is prepared, and the error names the key to change."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from krill.data.inputs import RunInputs
from krill.errors import USAGE, UsageError
from krill.launch.devices import ALLOCATOR_VARIABLES
from krill.models.isolation import LENGTH_BACKEND_FEATURES
from krill.optim.build import build_optimizer
from krill.training.accelerate_env import check_accelerate_env
from krill.training.compute.context_parallel import check_context_parallel, select_tested_kernels
from krill.training.compute.device import resolve_shard_size
from krill.training.preflight import run_preflight_checks


@pytest.mark.parametrize(
    ("environ", "key"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "ACCELERATE_USE_DEEPSPEED"),
        ({"ACCELERATE_USE_DEEPSPEED": "1", "ACCELERATE_USE_FSDP": "false"}, "--use_fsdp --fsdp_version=2"),
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP_VERSION=2"),  # accelerate's default is version 1
        ({"ACCELERATE_USE_FSDP": "True", "FSDP_VERSION": "1"}, "fsdp_version: 2"),
    ],
)
def test_deepspeed_and_fsdp_1_are_rejected(environ: dict[str, str], key: str) -> None:
    with pytest.raises(UsageError, match=key):
        check_accelerate_env(environ)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"ACCELERATE_USE_DEEPSPEED": "false", "ACCELERATE_USE_FSDP": "0"},
        {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
        {"FSDP_VERSION": "1"},  # FSDP is not enabled
    ],
)
def test_ddp_and_fsdp_2_are_accepted(environ: dict[str, str]) -> None:
    check_accelerate_env(environ)


@pytest.mark.parametrize("dry_run", ["true", "false"])
def test_command_fails_before_it_creates_a_folder(
    krill_train: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], dry_run: str
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert krill_train(f"dry_run={dry_run}") == USAGE
    assert "ACCELERATE_USE_DEEPSPEED" in capsys.readouterr().err
    assert krill_train.runs() == []


@pytest.mark.parametrize("name", ["_flat_param", "_fsdp_wrapped_module"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon_moonlight"])
def test_parameters_wrapped_by_fsdp_1_are_rejected(make_config: Any, name: str, optimizer: str) -> None:
    model = nn.ModuleDict({name: nn.Linear(4, 4)})
    with pytest.raises(UsageError, match=f"{name}.*fsdp_version=2"):
        build_optimizer(model, make_config(f"optimizer={optimizer}").optimizer)


def test_processes_are_not_started_by_a_started_rank(
    krill_train: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert krill_train("hardware.processes=4") == 2
    assert "2 ranks were started (WORLD_SIZE): leave hardware.processes out" in capsys.readouterr().err


def test_training_on_cuda_configures_the_allocator(krill_train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ALLOCATOR_VARIABLES:
        monkeypatch.setenv(variable, "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert krill_train("device=cuda") == 2
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"


def test_more_ranks_than_devices_are_rejected(
    krill_train: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: True)
    assert krill_train("hardware.processes=2", "device=cuda") == 2
    assert "this machine has 1 visible CUDA devices" in capsys.readouterr().err


def start_ranks(monkeypatch: pytest.MonkeyPatch, world_size: int, local_world_size: int | None) -> None:
    """Sets what a launcher sets in a rank."""
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if local_world_size is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local_world_size))


@pytest.mark.parametrize(
    ("world_size", "local_world_size", "message"),
    [
        (6, 4, "6 ranks are not a multiple of the 4 of this node; start the same number on every node"),
        (4, 4, "all 4 ranks are on one node; use hardware.sharding=fsdp2"),
        (4, 1, "each node has one rank; use hardware.sharding=fsdp2"),
        (4, None, "LOCAL_WORLD_SIZE is not set"),
        (1, None, "each node has one rank"),
    ],
)
def test_hybrid_sharding_needs_equal_nodes(
    make_config: Any,
    monkeypatch: pytest.MonkeyPatch,
    world_size: int,
    local_world_size: int | None,
    message: str,
) -> None:
    start_ranks(monkeypatch, world_size, local_world_size)
    with pytest.raises(UsageError, match=re.escape(message)):
        resolve_shard_size(make_config("hardware.sharding=hsdp"))


def test_each_node_holds_a_copy_of_the_weights(make_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = ("hardware=slurm_nodes", "hardware.processes=4", "hardware.slurm.nodes=3", "device=cpu")
    assert resolve_shard_size(make_config(*slurm, "hardware.sharding=hsdp")) == 4
    assert resolve_shard_size(make_config(*slurm, "hardware.sharding=fsdp2")) == 12
    start_ranks(monkeypatch, 6, 2)
    assert resolve_shard_size(make_config("hardware.sharding=hsdp")) == 2


def test_nodes_with_different_numbers_of_ranks_are_rejected(
    make_config: Any, train_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("krill.training.ranks.all_gather_object", lambda value: [value, value and 3])
    monkeypatch.setattr("krill.training.run.resolve_shard_size", lambda config: 2)
    with pytest.raises(UsageError, match="the nodes have 2 and 3 ranks"):
        train_in(make_config("hardware.sharding=hsdp"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("hardware.processes=3",), "does not divide the number of ranks, 3; start a multiple of 2"),
        (("hardware.attention=sdpa",), "sdpa builds masks instead; use hardware.attention=varlen"),
        (("sequence_len=63",), "does not divide sequence_len=63; use a multiple of 2"),
        (("hardware.liger=true",), "has not been tested with hardware.liger=true; leave hardware.liger out"),
        (("hardware.loss=liger",), "has not been tested with hardware.loss=liger"),
        (("hardware.compile=true",), "has not been tested with hardware.compile=true"),
        (
            ("model.hidden_size=24", "model.num_attention_heads=3", "model.num_key_value_heads=3"),
            "does not divide the 3 attention heads of the model; use one of 3",
        ),
    ],
)
def test_rows_are_cut_only_as_tested(
    make_config: Any, monkeypatch: pytest.MonkeyPatch, changes: tuple[str, ...], message: str
) -> None:
    monkeypatch.setattr("krill.training.preflight.check_kernels", lambda *_: None)  # needs CUDA
    config = make_config("hardware.context_parallel=2", "hardware.processes=2", *changes)
    with pytest.raises(UsageError, match=re.escape(message)):
        run_preflight_checks(config, RunInputs(config.data, config.tokenizer, Path("outputs")))


@pytest.mark.parametrize("backend", LENGTH_BACKEND_FEATURES)
def test_rows_are_cut_with_every_backend_that_receives_lengths(make_config: Any, backend: str) -> None:
    check_context_parallel(make_config("hardware.context_parallel=2"), backend)


def test_auto_selects_only_kernels_tested_with_cut_rows(make_config: Any) -> None:
    cut = make_config("hardware.context_parallel=2").hardware
    assert select_tested_kernels(cut).liger is False
    whole = make_config().hardware
    assert select_tested_kernels(whole) == whole
