"""Save, restore and compare parameters and optimizer states that may be sharded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor


def gather_full_tensors(tensors: dict[Any, Tensor]) -> dict[Any, Tensor]:
    """Returns copies of the full tensors."""
    return {
        name: (t.full_tensor() if isinstance(t, DTensor) else t).detach().clone()
        for name, t in tensors.items()
    }


def is_equal(actual: dict[Any, Tensor], expected: dict[Any, Tensor]) -> bool:
    """Returns whether names and values are equal, to the bit."""
    return actual.keys() == expected.keys() and all(
        torch.equal(actual[name], expected[name]) for name in expected
    )


def compute_update_error(
    actual: dict[str, Tensor], expected: dict[str, Tensor], initial: dict[str, Tensor]
) -> float:
    """Returns the largest relative Frobenius error of the cumulative updates."""
    assert actual.keys() == expected.keys()
    return max(float((actual[n] - expected[n]).norm() / (expected[n] - initial[n]).norm()) for n in expected)


def save_state(folder: Path, model: nn.Module, optimizer: Any) -> None:
    model_state, optimizer_state = get_state_dict(model, optimizer)
    dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=folder)


def restore_state(folder: Path, model: nn.Module, optimizer: Any) -> None:
    model_state, optimizer_state = get_state_dict(model, optimizer)
    dcp.load({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=model_state, optim_state_dict=optimizer_state)


def reject_as_torch_2_11() -> None:
    """Makes operations fail on DTensors in this process as those of torch 2.11 do."""
    for name in ("_foreach_lerp", "_foreach_sign_"):
        setattr(torch, name, _reject_dtensors(name, getattr(torch, name)))


def _reject_dtensors(name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
    def run_on_plain_tensors(tensors: list[Tensor], *arguments: Any) -> Any:
        if any(isinstance(tensor, DTensor) for tensor in tensors):
            raise NotImplementedError(f"aten.{name} does not have a sharding strategy registered")
        return operation(tensors, *arguments)

    return run_on_plain_tensors
