"""The small set of `${krill.…}` expressions that conf/ may use."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from krill.config.paths import get_outputs_root


def null_if_set(given: Any, otherwise: Any) -> Any:
    """null when `given` is set, else `otherwise`: steps has a default unless epochs is set."""
    return otherwise if given is None else None


def inverse_sqrt(width: int) -> float:
    """1/√width, the original's initializer range."""
    return 1.0 / math.sqrt(width)


def muon_lr(scale: str, lr: Any, hidden_size: Any) -> Any:
    """The rate of Muon's matrices that moves one of hidden size as an update of AdamW's size does at `lr`.

    At scale rms an update, 0.2·√max(r, c) times an orthogonal matrix, has that size: `lr` itself. At scale spectral
    it is √max(1, r/c) = 1 times an orthogonal matrix where the matrix is square. What is no number is left to the
    schema, which says so.
    """
    return lr * _spectral_to_rms_ratio(scale, hidden_size) if _is_number(lr) else lr


def muon_decay(scale: str, weight_decay: Any, hidden_size: Any) -> Any:
    """The decay that keeps rate × decay what it is on the AdamW scale."""
    return (
        weight_decay / _spectral_to_rms_ratio(scale, hidden_size)
        if _is_number(weight_decay)
        else weight_decay
    )


def _spectral_to_rms_ratio(scale: str, hidden_size: Any) -> float:
    if hidden_size is None and scale == "spectral":
        raise ValueError(
            "the model has no hidden_size to derive it from at optimizer.scale=spectral; set optimizer.muon_lr and "
            "optimizer.muon_weight_decay, or write optimizer=muon_moonlight"
        )
    known = _is_number(hidden_size) and hidden_size > 0
    return 0.2 * math.sqrt(hidden_size) if scale == "spectral" and known else 1.0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def sweep_folder(output: str | None, name: str, dry_run: bool = False) -> str:
    """Where a sweep's points live: `output` when given, else outputs/sweeps/<name>.

    Hydra writes there before krill can say no: in a dry run it is a folder that the sweep's end takes away.
    """
    if dry_run:
        return str(Path(tempfile.gettempdir()) / f"krill-dry-run-{os.getpid()}")
    return str(Path(output).absolute() if output else get_outputs_root() / "sweeps" / name)


for _resolver in (null_if_set, inverse_sqrt, muon_lr, muon_decay, sweep_folder):
    OmegaConf.register_new_resolver(f"krill.{_resolver.__name__}", _resolver, replace=True)
