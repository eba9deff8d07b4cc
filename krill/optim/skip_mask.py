"""A step whose update is masked out on the device: weights and state keep their bits, and the host does not wait.

torch's convention for it is the attribute `found_inf` of an optimizer, a 0-D fp32 tensor on the device of the
parameters: 1 in a step that is to be left out, else 0 (torch.amp.GradScaler sets it, fused kernels read it and return
at once). In a good step that costs no pass over the parameters: such a kernel, given the flag the other way round,
does its work in bad steps only. `torch.where` would read and write every gradient and update of every step: 1.4 % of
a step of Muon with matrices of 256 × 256 on a CPU, against 0.1 %.
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
    """What a step does with its tensors where `found_inf` is 1; None: every step is good."""

    def __init__(self, found_inf: Tensor | None):
        self.found_inf = found_inf
        self.is_good = None if found_inf is None else 1 - found_inf

    def get_factor(self, value: float) -> Any:
        """`value`, in a bad step 1; 0-D fp32 on the device, or the number itself where every step is good."""
        return value if self.found_inf is None else torch.where(self.found_inf > 0, 1.0, value)

    def replace(self, tensors: Sequence[Tensor], by: Sequence[Tensor]) -> None:
        """In a bad step: tensors ← by, whatever they hold; `by` is finite, fp32, and lies as they do."""
        ours, theirs = _to_local(tensors), _to_local(by)
        if self.is_good is None or not ours:
            return
        if not _is_contiguous([*ours, *theirs]):
            for tensor, other in zip(ours, theirs, strict=True):
                tensor.copy_(torch.where(self.is_good > 0, tensor, other))
            return
        # SGD's first step sets the momentum to the gradient. Its rate of −0 leaves the sign even of zeros.
        _fused_sgd(theirs, theirs, ours, momentum=1.0, lr=-0.0, is_first_step=True, found_inf=self.is_good)

    def zero(self, tensors: Sequence[Tensor]) -> None:
        """In a bad step: tensors ← 0; they are finite fp32."""
        ours = _to_local(tensors)
        if self.is_good is None or not ours:
            return
        if not _is_contiguous(ours):
            for tensor in ours:
                tensor.copy_(torch.where(self.is_good > 0, tensor, 0.0))
            return
        _fused_sgd(ours, ours, [], momentum=0.0, lr=1.0, is_first_step=False, found_inf=self.is_good)


NO_SKIP = SkipMask(None)
_fused_sgd = partial(torch._fused_sgd_, weight_decay=0.0, dampening=0.0, nesterov=False, maximize=False)


def _to_local(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def _is_contiguous(tensors: list[Tensor]) -> bool:
    """As fused kernels need it; a shard along the columns may lie otherwise."""
    return all(tensor.is_contiguous() for tensor in tensors)


def async_to_host(flag: Tensor) -> Callable[[], bool]:
    """Send a 0-D flag to the host; what is returned reads it, and waits for no later work of the device."""
    host = torch.empty((), dtype=flag.dtype, pin_memory=flag.is_cuda)
    host.copy_(flag, non_blocking=True)
    there = torch.cuda.Event() if flag.is_cuda else None
    if there:
        there.record(torch.cuda.current_stream(flag.device))

    def read() -> bool:
        if there:
            there.synchronize()
        return bool(host.numpy())

    return read


def supports_found_inf(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer reads `found_inf` itself: krill's Muon, and those of torch with fused=True."""
    return hasattr(type(optimizer), "found_inf") or getattr(optimizer, "_step_supports_amp_scaling", False)


def wrap_step_skip(is_bad: Callable[[], bool], optimizer: torch.optim.Optimizer) -> None:
    """Leave out the bad steps of an optimizer that cannot mask them: its `step` is not called then."""
    plain = optimizer.step

    def step(self: torch.optim.Optimizer, *arguments: Any, **named: Any) -> Any:
        return None if is_bad() else plain(*arguments, **named)

    optimizer.step = MethodType(step, optimizer)  # type: ignore[method-assign]
