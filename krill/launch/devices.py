"""The CUDA devices of this machine, listed without torch, which the parent of a sweep does not import."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
"""The environment variables that configure torch's CUDA allocator: the current one, then older names."""


def list_visible_gpus() -> list[str]:
    """Returns the names of the visible devices: the entries of CUDA_VISIBLE_DEVICES if set, else all indices."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        return names[: names.index("-1")] if "-1" in names else [name for name in names if name]
    return [str(index) for index in range(_count_installed_gpus())]


def _count_installed_gpus() -> int:
    folder = Path("/proc/driver/nvidia/gpus")
    if folder.is_dir():
        return len(list(folder.iterdir()))
    try:
        listing = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())


def configure_cuda_allocator(device: str) -> None:
    """Makes torch's CUDA allocator grow its segments, which fragments less, unless the environment configures it.

    Call it before torch is imported. `device`: value of the key; nothing changes for cpu or without a GPU.
    """
    is_configured = any(os.environ.get(name) for name in ALLOCATOR_VARIABLES)
    if device != "cpu" and not is_configured and list_visible_gpus():
        os.environ[ALLOCATOR_VARIABLES[0]] = "expandable_segments:True"
