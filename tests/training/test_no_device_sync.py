"""Tests that nothing waits for the device between two logged steps.

The device of these tests is meta, which has no data: whatever reads from it fails, wherever that is. Only Tensor.item
and Tensor.tolist return something here, and their calls are recorded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainingArguments

from krill.training import run as run_module
from krill.training.trainer import KrillTrainer

META = torch.device("meta")


class SyncRecorder(TorchDispatchMode):
    """Records what makes the host wait for the device, in logged steps (a count) and in others."""

    def __init__(self) -> None:
        super().__init__()
        self.logged = 0
        self.unexpected: list[str] = []

    def read(self, name: str, trainer: KrillTrainer, logging: bool) -> None:
        if logging:
            self.logged += 1
        elif trainer.state.global_step < trainer.state.max_steps:
            self.unexpected.append(f"{name} after step {trainer.state.global_step}")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._fused_sgd_.default:
            return None  # torch has no meta kernel; it returns None
        if func is torch.ops.aten.copy_.default and args[1].is_meta and not args[0].is_meta:
            if not (kwargs.get("non_blocking") or (len(args) > 2 and args[2])):
                self.unexpected.append(f"a copy of {tuple(args[1].shape)} to the host")
            return args[0].zero_()
        result = func(*args, **kwargs)
        copied = func is torch.ops.aten._to_copy.default and result.is_meta and not args[0].is_meta
        if copied and not kwargs.get("non_blocking"):
            self.unexpected.append(f"a copy of {tuple(result.shape)} to the device")
        return result


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> SyncRecorder:
    """Makes runs train on meta, without validation, checkpoints and results; records their synchronizations."""
    syncs = SyncRecorder()
    state: dict[str, Any] = {"logging": False}
    original = {name: getattr(torch.Tensor, name) for name in ("item", "tolist")}
    train, log_save_evaluate = KrillTrainer.train, KrillTrainer._maybe_log_save_evaluate

    def on_meta(self: KrillTrainer, **kwargs: Any) -> Any:
        state["trainer"] = self
        self.model.to(META)
        with syncs:
            return train(self, **kwargs)

    def log(self: KrillTrainer, *args: Any, **kwargs: Any) -> None:
        state["logging"] = self.control.should_log
        log_save_evaluate(self, *args, **kwargs)
        state["logging"] = False

    def reader(name: str, value: Callable[[torch.Tensor], Any]) -> Callable[[torch.Tensor], Any]:
        def read(tensor: torch.Tensor) -> Any:
            if not tensor.is_meta:
                return original[name](tensor)
            syncs.read(name, state["trainer"], state["logging"])
            return value(tensor)

        return read

    autocast, is_enabled, adamw = torch.autocast, torch.is_autocast_enabled, torch.optim.AdamW
    for owner, name, stub in (
        (KrillTrainer, "train", on_meta),
        (KrillTrainer, "_maybe_log_save_evaluate", log),
        (KrillTrainer, "evaluate", lambda *_, **__: {}),
        (KrillTrainer, "_save_checkpoint", lambda *_: None),
        # fused, as on CUDA, so that it masks bad steps
        (torch.optim, "AdamW", lambda groups, fused: adamw(groups, fused=True)),
        (sys.modules["torch.optim.adam"], "_device_dtype_check_for_fused", lambda *_, **__: None),
        (TrainingArguments, "device", META),
        (Accelerator, "device", META),
        (torch.Tensor, "item", reader("item", lambda tensor: 0.5)),
        (torch.Tensor, "tolist", reader("tolist", lambda tensor: torch.zeros(tensor.shape).tolist())),
        (
            torch,
            "autocast",
            lambda kind, *a, **k: nullcontext() if kind == "meta" else autocast(kind, *a, **k),
        ),
        (torch, "is_autocast_enabled", lambda *kind: kind != ("meta",) and is_enabled(*kind)),
        *(
            (run_module, name, lambda *_: {})
            for name in ("collect_final_metrics", "save_final_model", "log_summary")
        ),
    ):
        monkeypatch.setattr(owner, name, stub)
    return syncs


OVERRIDES = ("steps=7", "log_every=3", "batch.gradient_accumulation_steps=2")


@pytest.mark.parametrize(
    "extra_overrides", [("optimizer=adamw",), ("optimizer=muon_moonlight",), ("hardware.loss=full",)]
)
def test_only_logged_steps_wait_for_the_device(
    extra_overrides: tuple[str, ...],
    syncs: SyncRecorder,
    train_in: Callable[..., Path],
    make_config: Callable[..., Any],
) -> None:
    train_in(make_config(*OVERRIDES, *extra_overrides))
    assert syncs.unexpected == []
    assert syncs.logged == 4 * 4  # steps 1, 3, 6 and 7: loss, gradient norm, optimizer statistics, bad steps


def test_reading_the_loss_in_every_step_is_detected(
    syncs: SyncRecorder,
    train_in: Callable[..., Path],
    make_config: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compute_loss = KrillTrainer.compute_loss

    def read(*args: Any, **kwargs: Any) -> Any:
        loss = compute_loss(*args, **kwargs)
        loss.item()
        return loss

    monkeypatch.setattr(KrillTrainer, "compute_loss", read)
    train_in(make_config(*OVERRIDES))
    assert len(syncs.unexpected) == 7 * 2


@pytest.mark.parametrize("read", [bool, float, torch.Tensor.cpu, torch.nonzero, lambda norm: norm.numpy()])
def test_any_other_read_fails(
    read: Callable[[torch.Tensor], Any], syncs: SyncRecorder, train_in: Callable[..., Path],
    make_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    clip = KrillTrainer._clip_grad_norm
    monkeypatch.setattr(KrillTrainer, "_clip_grad_norm", lambda *args: read(clip(*args)))
    with pytest.raises((RuntimeError, TypeError)):
        train_in(make_config(*OVERRIDES))
