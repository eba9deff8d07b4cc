"""Applies Liger's kernels and gradient checkpointing to a model."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from krill.config.schema import HardwareConfig
from krill.errors import UsageError
from krill.training.compute.backends import check_kernels, has_liger

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LIGER_KERNELS = {"rope": True, "rms_norm": True, "swiglu": True}
"""The Liger kernels that are applied; its loss is hardware.loss=liger."""


def apply_kernels(
    model: PreTrainedModel, hardware: HardwareConfig, device: str, is_compiled: bool = False
) -> list[str]:
    """Applies the kernels and the checkpointing of `hardware` to `model`; returns their names for the run's header.

    torch.compile generates kernels for what Liger replaces, so hardware.liger=auto leaves it to it.

    Raises UsageError if something requested by name is not supported by the model.
    """
    check_kernels(hardware, device)
    names = []
    if (
        (hardware.liger is True or (hardware.liger == "auto" and not is_compiled))
        and device == "cuda"
        and has_liger()
        and _apply_liger(model, hardware.liger)
    ):
        names.append("liger")
    if hardware.gradient_checkpointing:
        _enable_gradient_checkpointing(model)
        names.append("gradient checkpointing")
    return names


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
