"""Selects the attention backend and the loss of a run, and checks what the device and the installation support."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from krill.config.schema import HardwareConfig
from krill.errors import UsageError
from krill.extras import format_install_command

FLASH_MODULES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
"""The module of each backend that is not part of torch."""

BACKENDS_WITHOUT_FP32 = ("varlen", *FLASH_MODULES)


def select_attention_backend(requested: str, device: str, precision: str) -> tuple[str, str | None]:
    """Returns the backend for hardware.attention on `device` in `precision`, and for auto the reason.

    auto: varlen, except sdpa for fp32 on CUDA, which Flash Attention does not support. On the CPU varlen is the
    fastest in `benchmarks/attention.py`. On CUDA varlen is Flash Attention without an extra package; whether another
    package is faster on some GPU is not measured, so auto never selects one.

    Raises:
        UsageError: the backend requested by name cannot run here.
    """
    if requested == "auto":
        if device == "cpu":
            return "varlen", "fastest on a CPU"
        if precision == "fp32":
            return "sdpa", "Flash Attention has no fp32"
        return "varlen", "torch's built-in Flash Attention"
    if requested in FLASH_MODULES:
        _check_flash_installed(requested, device)
    if requested in BACKENDS_WITHOUT_FP32 and device == "cuda" and precision == "fp32":
        raise UsageError(
            f"hardware.attention={requested} is Flash Attention on CUDA, which has no fp32; use "
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
    """Returns full, chunked or liger, for hardware.loss on `device`; auto: liger on CUDA if installed, else chunked.

    Raises UsageError if liger is requested and cannot run.
    """
    if requested == "auto":
        return "liger" if device == "cuda" and has_liger() else "chunked"
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
    if hardware.compile and device != "cuda":
        raise UsageError(
            "hardware.compile=true needs a CUDA device: on the CPU every new number of documents in a row compiles "
            "the model again, step after step; use hardware.compile=false"
        )


def _format_flash_install_command(requested: str) -> str:
    """Returns the command for a package that is built with the installed torch; version 3 is not on an index."""
    package = {
        "flash_attention_2": "flash-attn>=2.8.3",
        "flash_attention_3": "git+https://github.com/Dao-AILab/flash-attention#subdirectory=hopper",
    }[requested]
    return f"pip install setuptools wheel && pip install --no-build-isolation '{package}'"


def _check_flash_installed(requested: str, device: str) -> None:
    """Imports the module, because an installed one may have been built for another torch."""
    module = FLASH_MODULES[requested]
    needed = [] if device == "cuda" else ["a CUDA device"]
    try:
        import_module(module).flash_attn_varlen_func  # noqa: B018
    except (ImportError, AttributeError) as error:
        needed.append(f"the module {module} ({error}): {_format_flash_install_command(requested)}")
    if needed:
        raise UsageError(
            f"hardware.attention={requested} needs {' and '.join(needed)}; or use hardware.attention=auto"
        )
