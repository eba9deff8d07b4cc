"""Checkpoint retention: keeps the newest, the best by validation loss and the last one before the decay of wsd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from krill.config.schema import TrainConfig
from krill.runs import checkpoints
from krill.runs.json_lines import read_validations
from krill.runs.record import Record


class CheckpointRetention(TrainerCallback):
    """Deletes old checkpoints after each save, and records the best remaining one in status.json.

    Args:
        record: the run's record.
        config: keep_checkpoints and keep_best apply.
        protected_step: the step whose checkpoint is never deleted; None: none.
        corrupt_checkpoints: checkpoints that failed verification when the run resumed.

    The loss of a checkpoint is the validation loss of its own step, measured before or after the save.
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
        self.eval_losses = {line["step"]: line["eval_loss"] for line in read_validations(record.folder)}

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: object,
    ) -> None:
        self.eval_losses[state.global_step] = (metrics or {})["eval_loss"]
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
        """Records the checkpoint with the lowest validation loss and returns its step; the first of equal ones."""
        if not self.config.keep_best:
            return None
        candidates: list[dict[str, Any]] = [
            {
                "step": step,
                "eval_loss": self.eval_losses[step],
                "checkpoint": f"{self.folder.name}/{path.name}",
            }
            for path in checkpoints.complete_checkpoints(self.folder, self.corrupt_checkpoints)
            if (step := checkpoints.parse_step(path)) in self.eval_losses
        ]
        best = min(candidates, key=lambda entry: entry["eval_loss"], default={})
        if best != self.record.status.get("best", {}):
            self.record.update(best=best)
        return best.get("step")
