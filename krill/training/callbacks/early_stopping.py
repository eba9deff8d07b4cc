"""Ends a run before its last step when the validation loss reaches a target or stops improving."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from krill.config.schema import EarlyStoppingConfig
from krill.runs.json_lines import read_validations
from krill.runs.record import read_status
from krill.training import ranks

log = logging.getLogger("krill")


def get_stop_reason(stop: EarlyStoppingConfig, losses: list[float]) -> str | None:
    """Returns why a run with the validation `losses`, in order, ends after the last of them; None: it continues.

    Depends on metrics.jsonl only, so that a resumed run decides as an uninterrupted one does.
    """
    if not losses:
        return None
    if stop.target_loss is not None and losses[-1] <= stop.target_loss:
        return f"validation loss {losses[-1]:.4f} has reached stop.target_loss={stop.target_loss:g}"
    best = losses.index(min(losses))
    if stop.patience is not None and len(losses) - 1 - best >= stop.patience:
        count, lowest = stop.patience, losses[best]
        return f"the last {count} validations were not below {lowest:.4f} (stop.patience={count})"
    return None


def read_stop_reason(stop: EarlyStoppingConfig, folder: Path, step: int) -> str | None:
    """Returns `get_stop_reason` at `step` of the run in `folder`; None when that step was not validated.

    The validations of the run that a branch came from do not count: they may have ended that run.
    """
    branch = (read_status(folder) or {}).get("branch") or {"step": 0}
    lines = [line for line in read_validations(folder) if branch["step"] < line["step"] <= step]
    if not lines or lines[-1]["step"] != step:
        return None
    return get_stop_reason(stop, [line["eval_loss"] for line in lines])


class EarlyStopping(TrainerCallback):
    """Checks the loss after each validation; ends the training with a checkpoint."""

    def __init__(self, stop: EarlyStoppingConfig, folder: Path):
        self.stop, self.folder = stop, folder

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self._read_stop_reason(state):  # decided by the process that saved this checkpoint
            control.should_training_stop = True

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        reason = self._read_stop_reason(state)
        if reason and state.global_step < state.max_steps:
            log.info("stopping    at step %d of %d: %s", state.global_step, state.max_steps, reason)
            control.should_save = control.should_training_stop = True

    def _read_stop_reason(self, state: TrainerState) -> str | None:
        return ranks.on_rank0(lambda: read_stop_reason(self.stop, self.folder, state.global_step))
