"""Between two logged steps nothing waits for the device.

The device of these tests is meta, which has no data to give: whatever reads from it fails, wherever that is. Only
Tensor.item and Tensor.tolist give something here, and who calls them is noted.
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

from krill.training import run as module
from krill.training.trainer import KrillTrainer

META = torch.device("meta")


class Waits(TorchDispatchMode):
    """What made the host wait for the device while no step was logged."""

    def __init__(self) -> None:
        super().__init__()
        self.logged = 0
        self.others: list[str] = []

    def read(self, name: str, trainer: KrillTrainer, logging: bool) -> None:
        if logging:
            self.logged += 1
        elif trainer.state.global_step < trainer.state.max_steps:
            self.others.append(f"{name} after step {trainer.state.global_step}")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._fused_sgd_.default:
            return None  # torch has none for meta; it returns nothing
        if func is torch.ops.aten.copy_.default and args[1].is_meta and not args[0].is_meta:
            if not (kwargs.get("non_blocking") or (len(args) > 2 and args[2])):
                self.others.append(f"a copy of {tuple(args[1].shape)} to the host")
            return args[0].zero_()
        found = func(*args, **kwargs)
        copied = func is torch.ops.aten._to_copy.default and found.is_meta and not args[0].is_meta
        if copied and not kwargs.get("non_blocking"):
            self.others.append(f"a copy of {tuple(found.shape)} to the device")
        return found


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    """Trains on meta, without validations, saves and a result, and notes the waits."""
    waits = Waits()
    at: dict[str, Any] = {"logging": False}
    plain = {name: getattr(torch.Tensor, name) for name in ("item", "tolist")}
    train, log_if_due = KrillTrainer.train, KrillTrainer._maybe_log_save_evaluate

    def on_meta(self: KrillTrainer, **rest: Any) -> Any:
        at["trainer"] = self
        self.model.to(META)
        with waits:
            return train(self, **rest)

    def log(self: KrillTrainer, *rest: Any, **named: Any) -> None:
        at["logging"] = self.control.should_log
        log_if_due(self, *rest, **named)
        at["logging"] = False

    def reader(name: str, value: Callable[[torch.Tensor], Any]) -> Callable[[torch.Tensor], Any]:
        def read(tensor: torch.Tensor) -> Any:
            if not tensor.is_meta:
                return plain[name](tensor)
            waits.read(name, at["trainer"], at["logging"])
            return value(tensor)

        return read

    autocast, is_enabled, adamw = torch.autocast, torch.is_autocast_enabled, torch.optim.AdamW
    for owner, name, stub in (
        (KrillTrainer, "train", on_meta),
        (KrillTrainer, "_maybe_log_save_evaluate", log),
        (KrillTrainer, "evaluate", lambda *_, **__: {}),
        (KrillTrainer, "_save_checkpoint", lambda *_: None),
        # fused, as on CUDA: it masks bad steps by itself
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
        *((module, name, lambda *_: {}) for name in ("final_metrics", "keep", "tell")),
    ):
        monkeypatch.setattr(owner, name, stub)
    return waits


WORDS = ("steps=7", "log_every=3", "batch.gradient_accumulation_steps=2")


@pytest.mark.parametrize(
    "words", [("optimizer=adamw",), ("optimizer=muon_moonlight",), ("hardware.loss=full",)]
)
def test_only_logged_steps_wait_for_the_device(
    words: tuple[str, ...], waits: Waits, train_in: Callable[..., Path], make_config: Callable[..., Any]
) -> None:
    train_in(make_config(*WORDS, *words))
    assert waits.others == []
    assert (
        waits.logged == 4 * 4
    )  # steps 1, 3, 6 and 7: loss, norm of the gradients, figures of the groups, the guard


def test_a_loss_that_is_read_in_every_step_is_seen(
    waits: Waits,
    train_in: Callable[..., Path],
    make_config: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compute_loss = KrillTrainer.compute_loss

    def read(*arguments: Any, **named: Any) -> Any:
        loss = compute_loss(*arguments, **named)
        loss.item()
        return loss

    monkeypatch.setattr(KrillTrainer, "compute_loss", read)
    train_in(make_config(*WORDS))
    assert len(waits.others) == 7 * 2


@pytest.mark.parametrize("read", [bool, float, torch.Tensor.cpu, torch.nonzero, lambda norm: norm.numpy()])
def test_whatever_else_reads_fails(
    read: Callable[[torch.Tensor], Any], waits: Waits, train_in: Callable[..., Path],
    make_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    clip = KrillTrainer._clip_grad_norm
    monkeypatch.setattr(KrillTrainer, "_clip_grad_norm", lambda *arguments: read(clip(*arguments)))
    with pytest.raises((RuntimeError, TypeError)):
        train_in(make_config(*WORDS))
