"""What cannot be right is refused before anything is prepared, with the key to change."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from krill.errors import USAGE, UsageError
from krill.optim.build import build_optimizer
from krill.training.accelerate_env import check_accelerate_env


@pytest.mark.parametrize(
    ("environ", "key"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "ACCELERATE_USE_DEEPSPEED"),
        ({"ACCELERATE_USE_DEEPSPEED": "1", "ACCELERATE_USE_FSDP": "false"}, "--use_fsdp --fsdp_version=2"),
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP_VERSION=2"),  # accelerate then takes version 1
        ({"ACCELERATE_USE_FSDP": "True", "FSDP_VERSION": "1"}, "fsdp_version: 2"),
    ],
)
def test_deepspeed_and_fsdp_1_are_refused(environ: dict[str, str], key: str) -> None:
    with pytest.raises(UsageError, match=key):
        check_accelerate_env(environ)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"ACCELERATE_USE_DEEPSPEED": "false", "ACCELERATE_USE_FSDP": "0"},
        {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
        {"FSDP_VERSION": "1"},  # asks for nothing
    ],
)
def test_ddp_and_fsdp_2_are_not(environ: dict[str, str]) -> None:
    check_accelerate_env(environ)


@pytest.mark.parametrize("dry_run", ["true", "false"])
def test_the_command_refuses_before_it_makes_a_folder(
    krill_train: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], dry_run: str
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert krill_train(f"dry_run={dry_run}") == USAGE
    assert "ACCELERATE_USE_DEEPSPEED" in capsys.readouterr().err
    assert krill_train.runs() == []


@pytest.mark.parametrize("name", ["_flat_param", "_fsdp_wrapped_module"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon_moonlight"])
def test_parameters_that_fsdp_1_wrapped_are_refused(make_config: Any, name: str, optimizer: str) -> None:
    model = nn.ModuleDict({name: nn.Linear(4, 4)})
    with pytest.raises(UsageError, match=f"{name}.*fsdp_version=2"):
        build_optimizer(model, make_config(f"optimizer={optimizer}").optimizer)


def test_ranks_that_were_started_are_not_started_again(
    krill_train: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert krill_train("hardware.processes=4") == 2
    assert "2 ranks were started (WORLD_SIZE): leave hardware.processes out" in capsys.readouterr().err


def test_each_rank_needs_a_device(
    krill_train: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: True)
    assert krill_train("hardware.processes=2", "device=cuda") == 2
    assert "this machine has 1 visible CUDA devices" in capsys.readouterr().err
