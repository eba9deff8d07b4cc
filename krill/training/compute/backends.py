"""Selects the attention backend and the loss of a run, and checks what the device and the installation support."""

from __future__ import annotations

from importlib.util import find_spec

from krill.config.schema import HardwareConfig
from krill.errors import UsageError
from krill.extras import format_install_command
from krill.training.compute.compilation import find_compile_obstacle
from krill.training.compute.device import BF16_PRECISIONS
from krill.training.compute.flash import FLASH_PACKAGES, check_flash_package, find_replacement_kernels

BACKENDS_WITHOUT_FP32 = ("varlen", *FLASH_PACKAGES)


def select_attention_backend(requested: str, device: str, precision: str) -> tuple[str, str | None]:
    """Returns the backend for hardware.attention on `device` in `precision`, and for auto the reason.

    auto: varlen, except sdpa for fp32 and tf32 on CUDA, which Flash Attention does not support. On the CPU varlen is
    the fastest in `benchmarks/attention.py`. On CUDA varlen is Flash Attention 2 without an extra package; where
    FlashAttention 3 or 4 is installed and made for the GPU, its kernels are used (not measured).

    Raises:
        UsageError: the backend requested by name cannot run here.
    """
    if requested == "auto":
        if device == "cpu":
            return "varlen", "fastest on a CPU"
        if precision not in BF16_PRECISIONS:
            return "sdpa", f"Flash Attention has no {precision}"
        if replacement := find_replacement_kernels():
            return replacement, "installed, and made for this GPU"
        return "varlen", "torch's built-in Flash Attention"
    if requested in FLASH_PACKAGES:
        check_flash_package(requested, device)
    if requested in BACKENDS_WITHOUT_FP32 and device == "cuda" and precision not in BF16_PRECISIONS:
        raise UsageError(
            f"hardware.attention={requested} is Flash Attention on CUDA, which has no {precision}; use "
            "hardware.precision=bf16 or hardware.attention=sdpa"
        )
    if requested == "flex" and device == "cpu":
        raise UsageError(
            "hardware.attention=flex does not train on the CPU, where torch's flex attention has no backward pass; "
            "use hardware.attention=auto"
        )
    return requested, None


def has_liger() -> bool:
    """Returns whether Liger is installed, without importing it: that takes seconds, and its kernels need CUDA."""
    return find_spec("liger_kernel") is not None


def select_loss(requested: str, device: str) -> str:
    """Returns full, chunked or liger, for hardware.loss on `device`; auto: chunked.

    Liger's loss makes the host wait for the device three times per pass, so auto does not select it.

    Raises UsageError if liger is requested and cannot run.
    """
    if requested == "auto":
        return "chunked"
    if requested == "liger" and not (device == "cuda" and has_liger()):
        raise UsageError(
            "hardware.loss=liger needs a CUDA device and the package liger-kernel "
            f"({format_install_command('cuda')}); use hardware.loss=auto"
        )
    return requested


def check_kernels(hardware: HardwareConfig, device: str) -> None:
    """Raises UsageError if `hardware` requests kernels that the device or the installation does not support."""
    select_loss(hardware.loss, device)
    if hardware.liger is True and not (device == "cuda" and has_liger()):
        raise UsageError(
            "hardware.liger=true needs a CUDA device and the package liger-kernel "
            f"({format_install_command('cuda')}); use hardware.liger=auto"
        )
    if hardware.compile is True and (obstacle := find_compile_obstacle(device)):
        raise UsageError(f"hardware.compile=true needs {obstacle}; use hardware.compile=auto")
