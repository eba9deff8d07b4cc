"""Masks out the update of a bad step on the device: weights and state keep their bits; the host does not wait.

This follows torch's convention, the attribute `found_inf` of an optimizer: a 0-D fp32 tensor on the device of the
parameters that is 1 in a step to skip and 0 otherwise (torch.amp.GradScaler sets it; fused kernels read it and return
immediately). A good step then costs no extra pass over the parameters, because a fused kernel that receives the
inverted flag does its work in bad steps only. `torch.where` would read and write every gradient and update in every
step: 1.4 % of a Muon step with matrices of 256 × 256 on a CPU, compared with 0.1 %.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


class SkipMask:
    """Masks the tensors of a step if `found_inf` is 1. None: the step is good."""

    def __init__(self, found_inf: Tensor | None):
        self.found_inf = found_inf
        self.is_good = None if found_inf is None else 1 - found_inf

    def get_factor(self, value: float) -> Any:
        """Returns `value`, or 1 in a bad step: 0-D fp32 on the device, or `value` itself without `found_inf`."""
        return value if self.found_inf is None else torch.where(self.found_inf > 0, 1.0, value)

    def replace(self, tensors: Sequence[Tensor], source: Sequence[Tensor]) -> None:
        """Copies `source` into `tensors` in a bad step, whatever they hold.

        `source` must be finite fp32 with the placements of `tensors`.
        """
        targets, sources = get_shards(tensors), get_shards(source)
        if self.is_good is None or not targets:
            return
        if not _is_contiguous([*targets, *sources]):
            for target, other in zip(targets, sources, strict=True):
                target.copy_(torch.where(self.is_good > 0, target, other))
            return
        # SGD's first step sets the momentum to the gradient. A rate of −0 keeps the sign even of zeros.
        _fused_sgd(
            sources, sources, targets, momentum=1.0, lr=-0.0, is_first_step=True, found_inf=self.is_good
        )

    def zero(self, tensors: Sequence[Tensor]) -> None:
        """Sets `tensors`, which must be finite fp32, to 0 in a bad step."""
        targets = get_shards(tensors)
        if self.is_good is None or not targets:
            return
        if not _is_contiguous(targets):
            for target in targets:
                target.copy_(torch.where(self.is_good > 0, target, 0.0))
            return
        _fused_sgd(targets, targets, [], momentum=0.0, lr=1.0, is_first_step=False, found_inf=self.is_good)


NO_SKIP = SkipMask(None)
_fused_sgd = partial(torch._fused_sgd_, weight_decay=0.0, dampening=0.0, nesterov=False, maximize=False)


def get_shards(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Returns what this rank has of each tensor: its shard of a DTensor, which shares its memory."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def _is_contiguous(tensors: list[Tensor]) -> bool:
    """Checks what fused kernels require; a shard along the columns may not be contiguous."""
    return all(tensor.is_contiguous() for tensor in tensors)


def async_to_host(flag: Tensor) -> Callable[[], bool]:
    """Copies a 0-D flag to the host asynchronously.

    Returns:
        A function that reads the flag; it waits for the copy, not for work queued on the device after it.
    """
    host = torch.empty((), dtype=flag.dtype, pin_memory=flag.is_cuda)
    host.copy_(flag, non_blocking=True)
    copied = torch.cuda.Event() if flag.is_cuda else None
    if copied:
        copied.record(torch.cuda.current_stream(flag.device))

    def read() -> bool:
        if copied:
            copied.synchronize()
        return bool(host.numpy())

    return read


def supports_found_inf(optimizer: torch.optim.Optimizer) -> bool:
    """Returns whether the optimizer reads `found_inf`: krill's Muon, and torch's optimizers with fused=True."""
    return hasattr(type(optimizer), "found_inf") or getattr(optimizer, "_step_supports_amp_scaling", False)


def wrap_step_skip(should_skip: Callable[[], bool], optimizer: torch.optim.Optimizer) -> None:
    """Skips the bad steps of an optimizer that cannot mask them, by not calling its `step`."""
    original_step = optimizer.step

    def step(self: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        return None if should_skip() else original_step(*args, **kwargs)

    optimizer.step = MethodType(step, optimizer)  # type: ignore[method-assign]
