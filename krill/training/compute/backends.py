"""Which attention backend computes a run: what was asked for, or what is fastest on the machine."""

from __future__ import annotations

from importlib import import_module

from krill.errors import UsageError

FLASH_PACKAGES = {
    "flash_attention_2": ("flash_attn", "pip install --no-build-isolation 'krill[flash]'"),
    "flash_attention_3": (
        "flash_attn_interface",
        "pip install --no-build-isolation "
        "'git+https://github.com/Dao-AILab/flash-attention#subdirectory=hopper'",
    ),
}
"""The module that computes each, and what installs it; FlashAttention 3 is on no package index."""

BACKENDS_WITHOUT_FP32 = ("varlen", *FLASH_PACKAGES)


def select_attention_backend(asked: str, device: str, precision: str) -> tuple[str, str | None]:
    """The backend for hardware.attention on `device` in `precision`, and for auto why it is that one.

    auto: varlen, but sdpa for fp32 on CUDA, which Flash Attention does not compute. On the CPU varlen is the fastest
    by `benchmarks/attention.py`. On CUDA it is Flash Attention too, without another package; whether another one is
    faster on some GPU is not measured yet, so auto takes none by itself.

    Raises:
        UsageError: what was asked for by name cannot run here.
    """
    if asked == "auto":
        if device == "cpu":
            return "varlen", "fastest on a CPU"
        if precision == "fp32":
            return "sdpa", "Flash Attention has no fp32"
        return "varlen", "Flash Attention inside torch"
    if asked in FLASH_PACKAGES:
        _check_flash_installed(asked, device)
    if asked in BACKENDS_WITHOUT_FP32 and device == "cuda" and precision == "fp32":
        raise UsageError(
            f"hardware.attention={asked} is Flash Attention on CUDA, which has no fp32; write "
            "hardware.precision=bf16 or hardware.attention=sdpa"
        )
    if asked == "flex" and device == "cpu":
        raise UsageError(
            "hardware.attention=flex does not train on the CPU, where torch's flex attention has no backward pass; "
            "write hardware.attention=auto"
        )
    return asked, None


def _check_flash_installed(asked: str, device: str) -> None:
    """Import the module: where it is there, it may have been built for another torch."""
    module, install = FLASH_PACKAGES[asked]
    needed = [] if device == "cuda" else ["a CUDA device"]
    try:
        import_module(module).flash_attn_varlen_func  # noqa: B018
    except (ImportError, AttributeError) as error:
        needed.append(f"the module {module} ({error}): {install}")
    if needed:
        raise UsageError(
            f"hardware.attention={asked} needs {' and '.join(needed)}; or write hardware.attention=auto"
        )
