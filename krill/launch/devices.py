"""The CUDA devices of this machine, counted without torch: the parent of ranks and sweeps must not load it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def list_visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may name, a device each: its own entries where it is set, else all indices."""
    asked = os.environ.get("CUDA_VISIBLE_DEVICES")
    if asked is not None:
        names = [name.strip() for name in asked.split(",")]
        return names[: names.index("-1")] if "-1" in names else [name for name in names if name]
    return [str(index) for index in range(_count_installed_gpus())]


def _count_installed_gpus() -> int:
    folder = Path("/proc/driver/nvidia/gpus")
    if folder.is_dir():
        return len(list(folder.iterdir()))
    try:
        told = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in told.stdout.splitlines())
