"""A run that cannot work is rejected before anything is prepared, and the error names the key to change."""

from __future__ import annotations

import os
from typing import Any

import pytest
from torch import nn

from krill.errors import USAGE, UsageError
from krill.launch.devices import ALLOCATOR_VARIABLES
from krill.optim.build import build_optimizer
from krill.training.accelerate_env import check_accelerate_env


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
