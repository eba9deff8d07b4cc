"""Ends a run before its last step when the validation loss or a score reaches a target or stops improving."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from krill.config.schema import EarlyStoppingConfig, TrainConfig
from krill.evaluation.score_metrics import is_lower_better
from krill.runs.json_lines import read_metrics
from krill.runs.record import read_status
from krill.training import ranks

log = logging.getLogger("krill")


def get_stop_reason(stop: EarlyStoppingConfig, best_metric: str, lines: list[dict[str, Any]]) -> str | None:
    """Returns why a run ends after the step of the last of `lines`, those of metrics.jsonl; None: it continues.

    Depends on metrics.jsonl only, so that a resumed run decides as an uninterrupted one does.
    """
    step = lines[-1]["step"] if lines else 0
    losses = _list_values(lines, "eval_loss", step)
    if losses and stop.target_loss is not None and losses[-1] <= stop.target_loss:
        return f"validation loss {losses[-1]:.4f} has reached stop.target_loss={stop.target_loss:g}"
    values = _list_values(lines, best_metric, step)
    if not values:
        return None
    is_lower, follows_loss = is_lower_better(best_metric), best_metric == "eval_loss"
    last, target = values[-1], stop.target
    if target is not None and (last <= target if is_lower else last >= target):
        return f"{best_metric} {last:.4f} has reached stop.target={target:g}"
    best = values.index(min(values) if is_lower else max(values))
    if stop.patience is not None and len(values) - 1 - best >= stop.patience:
        count, kind = stop.patience, "validations" if follows_loss else f"values of {best_metric}"
        relation = "below" if is_lower else "above"
        return f"the last {count} {kind} were not {relation} {values[best]:.4f} (stop.patience={count})"
    return None


def _list_values(lines: list[dict[str, Any]], metric: str, step: int) -> list[float]:
    """Returns the values of a metric in order; none if it was not measured at `step`."""
    measured = [line for line in lines if metric in line]
    return [line[metric] for line in measured] if measured and measured[-1]["step"] == step else []


def read_stop_reason(config: TrainConfig, folder: Path, step: int) -> str | None:
    """Returns `get_stop_reason` at `step` of the run in `folder`.

    The metrics of the run that a branch came from do not count: they may have ended that run.
    """
    branch = (read_status(folder) or {}).get("branch") or {"step": 0}
    lines = [line for line in read_metrics(folder) if branch["step"] < line["step"] <= step]
    if not lines or lines[-1]["step"] != step:
        return None
    return get_stop_reason(config.stop, config.best_metric, lines)


class EarlyStopping(TrainerCallback):
    """Checks the metrics after each validation and evaluation; ends the training with a checkpoint."""

    def __init__(self, config: TrainConfig, folder: Path):
        self.config, self.folder = config, folder

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self._read_stop_reason(state):  # decided by the process that saved this checkpoint
            control.should_training_stop = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if control.should_training_stop:  # decided already
            return
        if not logs or logs.keys().isdisjoint(("eval_loss", self.config.best_metric)):
            return
        reason = self._read_stop_reason(state)
        if reason and state.global_step < state.max_steps:
            log.info("stopping    at step %d of %d: %s", state.global_step, state.max_steps, reason)
            control.should_save = control.should_training_stop = True

    def _read_stop_reason(self, state: TrainerState) -> str | None:
        return ranks.on_rank0(lambda: read_stop_reason(self.config, self.folder, state.global_step))
