"""The small set of `${krill.…}` expressions that conf/ may use."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from krill.config.location import outputs_root


def unless(given: Any, otherwise: Any) -> Any:
    """null when `given` is set, else `otherwise`: steps has a default unless epochs is set."""
    return otherwise if given is None else None


def inverse_sqrt(width: int) -> float:
    """1/√width, the original's initializer range."""
    return 1.0 / math.sqrt(width)


def spectral_lr(lr: float, hidden_size: int) -> float:
    """The rate at which a spectral-scale update moves a hidden matrix as a rms-scale one does at `lr`.

    rms: 0.2·√max(r, c); spectral: √max(1, r/c) = 1 for a square matrix.
    """
    return lr * 0.2 * math.sqrt(hidden_size)


def spectral_decay(weight_decay: float, hidden_size: int) -> float:
    """The decay that keeps rate × decay what it is on the AdamW scale."""
    return weight_decay / (0.2 * math.sqrt(hidden_size))


def sweep_folder(output: str | None, name: str, dry_run: bool = False) -> str:
    """Where a sweep's points live: `output` when given, else outputs/sweeps/<name>.

    Hydra writes there before krill can say no: in a dry run it is a folder that the sweep's end takes away.
    """
    if dry_run:
        return str(Path(tempfile.gettempdir()) / f"krill-dry-run-{os.getpid()}")
    return str(Path(output).absolute() if output else outputs_root() / "sweeps" / name)


for _resolver in (unless, inverse_sqrt, spectral_lr, spectral_decay, sweep_folder):
    OmegaConf.register_new_resolver(f"krill.{_resolver.__name__}", _resolver, replace=True)
