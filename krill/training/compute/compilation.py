"""torch.compile: whether a run uses it, and for what (hardware.compile).

The forward pass of a training step is compiled as one graph up to the loss, and its backward pass. Under FSDP2 each
decoder block is compiled instead, because FSDP2 gathers the weights of a block in hooks around it. Names in
checkpoints stay the same; validation and generation run eagerly.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import nn

from krill.errors import KrillError, UsageError
from krill.resources import is_out_of_memory
from krill.training.compute.device import get_compute_capability
from krill.training.compute.thresholds import MIN_PASSES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CallableT = TypeVar("CallableT", bound=Callable[..., Any])

BACKEND = "inductor"
"""The backend of torch.compile that generates the kernels."""


def select_compile(requested: bool | str, device: str, passes: int) -> tuple[bool, str | None]:
    """Returns whether to compile for hardware.compile, and for auto the reason.

    `passes`: forward passes of the whole run on a rank, so that a resumed run computes as before.
    """
    if requested != "auto":
        return bool(requested), None
    if obstacle := find_compile_obstacle(device):
        return False, f"needs {obstacle}"
    if passes < MIN_PASSES:
        return False, f"{passes:,} passes do not repay it, {MIN_PASSES:,} do"
    return True, f"{passes:,} passes repay it"


def find_compile_obstacle(device: str) -> str | None:
    """Returns what torch.compile needs and does not have here, or None."""
    if device != "cuda":
        return "a CUDA device"
    if find_spec("triton") is None:
        return "the package triton"
    if get_compute_capability() < (7, 0):
        return "a GPU of compute capability 7.0 or newer"
    if not any(map(shutil.which, (os.environ.get("CC") or "gcc", "clang", "cc"))):
        return "a C compiler, such as gcc"
    return None


def compile_callable(function: CallableT) -> CallableT:
    """Returns `function`, or a model, compiled when it is first called."""
    return cast(CallableT, torch.compile(function, backend=BACKEND))


def compile_blocks(model: PreTrainedModel) -> int:
    """Compiles the forward pass of each decoder block, in training only; returns the number of blocks.

    Blocks of one class share their compiled code. Hooks of a block, such as those of FSDP2, run eagerly. Raises
    UsageError if the model does not name its blocks.
    """
    names = set(model._no_split_modules or ())
    blocks = [module for module in model.modules() if type(module).__name__ in names]
    if not blocks:
        raise UsageError(
            f"hardware.compile: {type(model).__name__} does not name its layers in _no_split_modules, and a sharded "
            "model is compiled layer by layer; use hardware.compile=false"
        )
    for block in blocks:
        block.forward = _compile_in_training(block)
    return len(blocks)


def _compile_in_training(block: nn.Module) -> Callable[..., Any]:
    """Returns the forward function of `block`, compiled in training mode: also when a checkpoint recomputes it."""
    eager = block.forward
    compiled = compile_callable(eager)

    @wraps(eager)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return (compiled if block.training else eager)(*args, **kwargs)

    return forward


@contextmanager
def explain_compile_errors(is_compiled: bool) -> Iterator[None]:
    """Raises KrillError with the remedy when torch.compile fails in this context; a lack of memory as it is."""
    if not is_compiled:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        inner = getattr(error, "inner_exception", None)
        if inner is not None and is_out_of_memory(inner):
            raise inner from None  # less memory may be enough: krill.training.oom_retry
        message = " ".join(str(error).split("\n\n")[0].split())  # advice on debugging follows
        raise KrillError(f"torch.compile failed ({message}); use hardware.compile=false") from error
