"""How a model is computed, beside its attention and its loss: Liger's kernels, recomputed activations."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from krill.config.schema import HardwareConfig
from krill.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LIGER_KERNELS = {"rope": True, "rms_norm": True, "swiglu": True}
"""What of Liger is applied; the loss is hardware.loss."""


def has_liger() -> bool:
    """Whether Liger is installed. It is not imported: that takes seconds, and its kernels need CUDA."""
    return find_spec("liger_kernel") is not None


def select_loss(asked: str, device: str) -> str:
    """full, chunked or liger, for hardware.loss on `device`; auto: liger where it is installed on CUDA, else chunked.

    Raises UsageError for liger where it cannot run.
    """
    if asked == "auto":
        return "liger" if device == "cuda" and has_liger() else "chunked"
    if asked == "liger" and not (device == "cuda" and has_liger()):
        raise UsageError(
            "hardware.loss=liger needs a CUDA device and the package liger-kernel (pip install 'krill[cuda]'); "
            "write hardware.loss=auto"
        )
    return asked


def check_kernels(hardware: HardwareConfig, device: str) -> None:
    """Raise UsageError where `hardware` asks by name for kernels that `device` or the installation does not have."""
    select_loss(hardware.loss, device)
    if hardware.liger is True and not (device == "cuda" and has_liger()):
        raise UsageError(
            "hardware.liger=true needs a CUDA device and the package liger-kernel (pip install 'krill[cuda]'); "
            "write hardware.liger=auto"
        )
    if hardware.compile and device != "cuda":
        raise UsageError(
            "hardware.compile=true needs a CUDA device: on the CPU, rows with another number of documents are "
            "compiled anew, step after step; write hardware.compile=false"
        )


def apply_kernels(model: PreTrainedModel, hardware: HardwareConfig, device: str) -> list[str]:
    """Change `model` to what `hardware` asks for and return the names of what is used, for the run's header.

    Raises UsageError where it was asked for by name and the model does not have it.
    """
    check_kernels(hardware, device)
    used = []
    if (
        hardware.liger is not False
        and device == "cuda"
        and has_liger()
        and _apply_liger(model, hardware.liger)
    ):
        used.append("liger")
    if hardware.gradient_checkpointing:
        _enable_gradient_checkpointing(model)
        used.append("gradient checkpointing")
    if hardware.compile:
        used.append("compiled")
    return used


def _apply_liger(model: PreTrainedModel, asked: bool | str) -> bool:
    """Liger's norms, rotary embeddings and MLPs in this model; rotary embeddings in all of its family."""
    monkey_patch = import_module("liger_kernel.transformers.monkey_patch")
    family = model.config.model_type
    if family not in monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN:
        if asked is True:
            raise UsageError(
                f"hardware.liger=true: Liger has no kernels for {family}; write hardware.liger=auto"
            )
        return False
    monkey_patch._apply_liger_kernel_to_instance(
        model=model, cross_entropy=False, fused_linear_cross_entropy=False, **LIGER_KERNELS
    )
    return True


def _enable_gradient_checkpointing(model: PreTrainedModel) -> None:
    if not model.supports_gradient_checkpointing:
        raise UsageError(
            f"hardware.gradient_checkpointing=true: {type(model).__name__} does not support it; "
            "write hardware.gradient_checkpointing=false"
        )
    # transformers before 5.2x knows the older name only
    enable: Any = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
