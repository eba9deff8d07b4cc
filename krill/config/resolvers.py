"""OmegaConf resolvers for conf/: each public function is registered as `${krill.<name>:…}`."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from krill.config.paths import expand_home, get_outputs_root
from krill.config.run_size import is_rate, is_rule_on, read_run_size, read_steps
from krill.config.size_rule import (
    compute_lr,
    compute_tokens,
    compute_warmup,
    compute_weight_decay,
    round_to_digits,
)


def null_if_set(value: Any, default: Any) -> Any:
    """Returns null if `value` is set, otherwise `default`: steps has a default unless epochs is set."""
    return default if value is None else None


def size_label(entries: Any) -> str:
    """Returns the name of a vocabulary size: 8k for 8192 or 8000, otherwise the number itself."""
    for thousand in (1000, 1024):
        if isinstance(entries, int) and entries >= thousand and entries % thousand == 0:
            return f"{entries // thousand}k"
    return str(entries)


def inverse_sqrt(width: int) -> float:
    """Returns 1/√width, the initializer range of minpeter/krill's Llama models."""
    return 1.0 / math.sqrt(width)


def muon_lr(scale: str, lr: Any, hidden_size: Any) -> Any:
    """Returns Muon's learning rate at which a hidden_size × hidden_size matrix moves as far as AdamW's at `lr`.

    At scale rms, the update is 0.2·√max(r, c) times an orthogonal matrix, which is as large as AdamW's: the rate is
    `lr`. At scale spectral it is √max(1, r/c) times an orthogonal matrix, with the factor 1 for a square matrix. A
    value that is not a number is returned unchanged; the schema reports it.
    """
    return lr * _spectral_to_rms_ratio(scale, hidden_size) if _is_number(lr) else lr


def muon_decay(scale: str, weight_decay: Any, hidden_size: Any) -> Any:
    """Returns Muon's weight decay that keeps learning rate × decay equal to AdamW's."""
    return (
        weight_decay / _spectral_to_rms_ratio(scale, hidden_size)
        if _is_number(weight_decay)
        else weight_decay
    )


def _spectral_to_rms_ratio(scale: str, hidden_size: Any) -> float:
    if hidden_size is None and scale == "spectral":
        raise ValueError(
            "the model has no hidden_size to derive it from at optimizer.scale=spectral; set optimizer.muon_lr and "
            "optimizer.muon_weight_decay, or use optimizer=muon_krill"
        )
    is_known = _is_number(hidden_size) and hidden_size > 0
    return 0.2 * math.sqrt(hidden_size) if scale == "spectral" and is_known else 1.0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def lr_by_size(fixed: float, factor: float = 1.0, *, _root_: DictConfig) -> float:
    """Returns the learning rate of the rule (`krill.config.size_rule`), times lr_scale.

    `fixed`: the rate with rule=off or where the size is not known; `factor`: that of the optimizer. An
    lr_scale that is not valid is ignored; the schema reports it.
    """
    size, scale, lr = read_run_size(_root_), _root_.get("lr_scale"), fixed
    if size is not None:
        lr = compute_lr(size.parameters, compute_tokens(size.parameters, size.steps), factor)
    return round_to_digits(lr * scale, 6) if is_rate(scale) and scale != 1 else lr


def weight_decay_by_size(fixed: float, *, _root_: DictConfig) -> float:
    """Returns the weight decay of the rule; `fixed`: with rule=off or where the size is not known."""
    size = read_run_size(_root_)
    return fixed if size is None else compute_weight_decay(size.parameters, size.steps)


def warmup_by_size(fixed: float, *, _root_: DictConfig) -> float:
    """Returns the fraction of warm-up of the rule; `fixed`: with rule=off."""
    return compute_warmup(read_steps(_root_)) if is_rule_on(_root_.get("rule")) else fixed


def if_from_scratch(value: float, otherwise: float, *, _root_: DictConfig) -> float:
    """Returns `value` for a model that is trained from scratch, `otherwise` for pretrained weights."""
    return otherwise if OmegaConf.select(_root_, "model.family") == "pretrained" else value


def sweep_folder(output: str | None, name: str, dry_run: bool = False) -> str:
    """Returns the folder of a sweep's points: `output` if set, otherwise outputs/sweeps/<name>.

    Hydra writes to it before krill can prevent that; a dry run gets a temporary folder, deleted at the sweep's end.
    """
    return str(get_dry_run_folder() if dry_run else get_sweep_folder(output, name))


def get_dry_run_folder() -> Path:
    """Returns the temporary folder of a dry run of a sweep."""
    return Path(tempfile.gettempdir()) / f"krill-dry-run-{os.getpid()}"


def get_sweep_folder(output: str | None, name: str) -> Path:
    """Returns the folder of a sweep that is not a dry run."""
    return expand_home(output).absolute() if output else get_outputs_root() / "sweeps" / name


for _resolver in (
    null_if_set, size_label, inverse_sqrt, muon_lr, muon_decay, lr_by_size, weight_decay_by_size, warmup_by_size,
    if_from_scratch, sweep_folder,
):  # fmt: skip
    OmegaConf.register_new_resolver(f"krill.{_resolver.__name__}", _resolver, replace=True)
