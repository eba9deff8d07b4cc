"""A run that continues another one inherits its learning rate, weight decay and batch, which the rule would change.

The rule follows the length of a run, and continuing changes the length: branch=, continue=, and resume= with
resume_changed=true. A value that the user sets wins.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pydantic import ValidationError

from krill.config.paths import relative_path
from krill.config.rule_keys import InheritedValues, follows_rule
from krill.config.run_size import is_rule_on
from krill.config.schema import TrainConfig
from krill.config.size_rule import AUTO
from krill.errors import UsageError
from krill.runs.claim import RESUME_MODES
from krill.runs.record import read_config, read_status
from krill.training.compute.device import resolve_data_ranks, resolve_world_size


def find_continued_run(config: TrainConfig) -> Path | None:
    """Returns the folder of the run that a configuration, in which names are folders already, continues; or None."""
    if config.branch is not None:
        path = Path(config.branch)
        return path if read_status(path) is not None else path.parents[1]
    if config.resume_changed and isinstance(config.resume, str) and config.resume not in RESUME_MODES:
        return Path(config.resume)
    return None


def inherit_rates(config: TrainConfig, composed: DictConfig) -> tuple[TrainConfig, InheritedValues | None]:
    """Returns `config` with the values of the run that it continues in place of those that the rule chose, and which.

    `composed`: what `config` was validated from. Raises UsageError if lr_scale would change the learning rate, if a
    value of that run is not valid, or if its rows per step do not divide over the ranks.
    """
    run = find_continued_run(config)
    if run is None or not is_rule_on(config.rule) or not (earlier := read_config(run)):
        return config, None
    unresolved: Any = OmegaConf.to_container(composed, resolve=False)
    values: dict[str, Any] = {}
    if follows_rule(unresolved, "lr") and "lr" in earlier:
        _check_scale(config, run, earlier)
        values["lr"] = earlier["lr"]
    optimizer = earlier.get("optimizer")
    decay = optimizer.get("weight_decay") if isinstance(optimizer, dict) else None
    if follows_rule(unresolved, "optimizer.weight_decay") and decay is not None:
        values["optimizer.weight_decay"] = decay
    batch, rows = config.batch, (read_status(run) or {}).get("rows_per_step")
    if batch.tokens == AUTO and batch.gradient_accumulation_steps is None and rows is not None:
        _check_ranks(config, run, rows)
        values["batch.tokens"] = rows * config.sequence_len
    if not values:
        return config, None
    changed = copy.deepcopy(composed)
    for key, value in values.items():
        OmegaConf.update(changed, key, value)
    # Other rates of the optimizer follow these.
    try:
        resolved = type(config).model_validate(OmegaConf.to_container(changed, resolve=True))
    except ValidationError as error:
        kept = ", ".join(f"{key}={value}" for key, value in values.items())
        raise UsageError(
            f"{relative_path(run)}: a run that continues it keeps {kept}, which is not valid; restore that run, or "
            "set " + " ".join(f"{key}=…" for key in values)
        ) from error
    config = config.model_copy(update={key: getattr(resolved, key) for key in ("lr", "optimizer", "batch")})
    return config, InheritedValues(str(relative_path(run)), frozenset(values))


def _check_scale(config: TrainConfig, run: Path, earlier: dict[str, Any]) -> None:
    if config.lr_scale not in (1, earlier.get("lr_scale", 1)):
        raise UsageError(
            f"lr_scale={config.lr_scale:g}: a run that continues {relative_path(run)} keeps its learning rate, "
            f"{earlier['lr']}; set lr_scale=1, or lr=… for another one"
        )


def _check_ranks(config: TrainConfig, run: Path, rows: int) -> None:
    ranks = resolve_data_ranks(config, resolve_world_size(config))
    if rows % ranks:
        most = max(count for count in range(1, ranks) if rows % count == 0)
        processes = most * config.hardware.context_parallel
        raise UsageError(
            f"a run that continues {relative_path(run)} keeps its {rows} rows per step, which do not divide over "
            f"{ranks} ranks; start {processes} (hardware.processes={processes})"
        )
