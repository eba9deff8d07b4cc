"""Checkpoint retention: keeps the newest, the best by best_metric and the last one before the decay of wsd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from krill.config.schema import TrainConfig
from krill.evaluation.score_metrics import is_lower_better
from krill.runs import checkpoints
from krill.runs.json_lines import read_metrics
from krill.runs.record import Record


class CheckpointRetention(TrainerCallback):
    """Deletes old checkpoints after each save, and records the best remaining one in status.json.

    Args:
        record: the run's record.
        config: keep_checkpoints, keep_best and best_metric apply.
        protected_step: the step whose checkpoint is never deleted; None: none.
        corrupt_checkpoints: checkpoints that failed verification when the run resumed.

    The value of a checkpoint is that of its own step, measured before or after the save.
    """

    def __init__(
        self,
        record: Record,
        config: TrainConfig,
        protected_step: int | None,
        corrupt_checkpoints: list[Path],
    ):
        self.record, self.config = record, config
        self.protected_step, self.corrupt_checkpoints = protected_step, corrupt_checkpoints
        self.folder = record.folder / "checkpoints"
        lines = read_metrics(record.folder)
        self.values = {line["step"]: line[config.best_metric] for line in lines if config.best_metric in line}

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: object,
    ) -> None:
        if logs and self.config.best_metric in logs:
            self.values[state.global_step] = logs[self.config.best_metric]
            self._update_best()

    def on_checkpoint_saved(self, step: int) -> None:
        """Deletes old checkpoints; called when the checkpoint of `step` is complete."""
        checkpoint = self.folder / f"checkpoint-{step}"
        self.corrupt_checkpoints = [path for path in self.corrupt_checkpoints if path != checkpoint]
        protected = {step for step in (self.protected_step, self._update_best()) if step is not None}
        checkpoints.rotate_checkpoints(
            self.folder, self.config.keep_checkpoints, protected, self.corrupt_checkpoints
        )

    def _update_best(self) -> int | None:
        """Records the checkpoint with the best value and returns its step; the first of equal ones."""
        if not self.config.keep_best:
            return None
        metric = self.config.best_metric
        sign = 1 if is_lower_better(metric) else -1
        candidates: list[dict[str, Any]] = [
            {
                "step": step,
                metric: self.values[step],
                "checkpoint": f"{self.folder.name}/{path.name}",
            }
            for path in checkpoints.complete_checkpoints(self.folder, self.corrupt_checkpoints)
            if (step := checkpoints.parse_step(path)) in self.values
        ]
        best = min(candidates, key=lambda entry: sign * entry[metric], default={})
        if best != self.record.status.get("best", {}):
            self.record.update(best=best)
        return best.get("step")
