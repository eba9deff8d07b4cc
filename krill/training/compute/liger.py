"""Applies Liger's kernels and gradient checkpointing to a model, and checks what the device supports."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from krill.config.schema import HardwareConfig
from krill.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LIGER_KERNELS = {"rope": True, "rms_norm": True, "swiglu": True}
"""The Liger kernels that are applied; its loss is hardware.loss=liger."""


def has_liger() -> bool:
    """Returns whether Liger is installed, without importing it: that takes seconds, and its kernels need CUDA."""
    return find_spec("liger_kernel") is not None


def select_loss(requested: str, device: str) -> str:
    """Returns full, chunked or liger, for hardware.loss on `device`; auto: liger on CUDA if installed, else chunked.

    Raises UsageError if liger is requested and cannot run.
    """
    if requested == "auto":
        return "liger" if device == "cuda" and has_liger() else "chunked"
    if requested == "liger" and not (device == "cuda" and has_liger()):
        raise UsageError(
            "hardware.loss=liger needs a CUDA device and the package liger-kernel (pip install 'krill[cuda]'); "
            "use hardware.loss=auto"
        )
    return requested


def check_kernels(hardware: HardwareConfig, device: str) -> None:
    """Raises UsageError if `hardware` requests kernels that the device or the installation does not support."""
    select_loss(hardware.loss, device)
    if hardware.liger is True and not (device == "cuda" and has_liger()):
        raise UsageError(
            "hardware.liger=true needs a CUDA device and the package liger-kernel (pip install 'krill[cuda]'); "
            "use hardware.liger=auto"
        )
    if hardware.compile and device != "cuda":
        raise UsageError(
            "hardware.compile=true needs a CUDA device: on the CPU every new number of documents in a row compiles "
            "the model again, step after step; use hardware.compile=false"
        )


def apply_kernels(model: PreTrainedModel, hardware: HardwareConfig, device: str) -> list[str]:
    """Applies the kernels and the checkpointing of `hardware` to `model`; returns their names for the run's header.

    Raises UsageError if something requested by name is not supported by the model.
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


def _apply_liger(model: PreTrainedModel, requested: bool | str) -> bool:
    """Applies Liger's norms, rotary embeddings and MLPs to `model`; returns whether Liger supports its family.

    The rotary embeddings are replaced for all models of the family.
    """
    monkey_patch = import_module("liger_kernel.transformers.monkey_patch")
    family = model.config.model_type
    if family not in monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN:
        if requested is True:
            raise UsageError(
                f"hardware.liger=true: Liger has no kernels for {family}; use hardware.liger=auto"
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
            "use hardware.gradient_checkpointing=false"
        )
    # transformers before 5.2x has only the older name
    enable: Any = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
