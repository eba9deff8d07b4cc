"""Ends a run before its last step by its validation loss: the target is reached, or it has stopped falling."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from krill.config.schema import EarlyStoppingConfig
from krill.runs.record import read_validations
from krill.training import ranks

log = logging.getLogger("krill")


def get_stop_reason(stop: EarlyStoppingConfig, losses: list[float]) -> str | None:
    """Why a run whose validations gave `losses`, in their order, is to end after the last of them; None: it is not.

    A function of what stands in metrics.jsonl, so that a run that goes on decides as one that was never stopped.
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
    """`get_stop_reason` at `step` of the run in `folder`; None where that step was not validated."""
    lines = [line for line in read_validations(folder) if line["step"] <= step]
    if not lines or lines[-1]["step"] != step:
        return None
    return get_stop_reason(stop, [line["eval_loss"] for line in lines])


class EarlyStopping(TrainerCallback):
    """Looks at each validation; ends the training with a checkpoint."""

    def __init__(self, stop: EarlyStoppingConfig, folder: Path):
        self.stop, self.folder = stop, folder

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self._read_stop_reason(state):  # by the process that saved this checkpoint
            control.should_training_stop = True

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        why = self._read_stop_reason(state)
        if why and state.global_step < state.max_steps:
            log.info("stop at step %d of %d: %s", state.global_step, state.max_steps, why)
            control.should_save = control.should_training_stop = True

    def _read_stop_reason(self, state: TrainerState) -> str | None:
        return ranks.on_rank0(lambda: read_stop_reason(self.stop, self.folder, state.global_step))
