"""Which checkpoints stay: the newest, the best by validation loss, the last one before the decay of wsd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from krill.config.schema import TrainConfig
from krill.runs import checkpoints
from krill.runs.record import Record, read_validations


class CheckpointRetention(TrainerCallback):
    """Rotates after each save, and writes the best checkpoint that is kept into status.json.

    `spared`: a step whose checkpoint stays in any case; `broken`: checkpoints that did not verify when the run
    went on. A checkpoint is judged by the validation of its own step, before or after it was saved.
    """

    def __init__(self, record: Record, config: TrainConfig, spared: int | None, broken: list[Path]):
        self.record, self.config, self.protected_step, self.corrupt_checkpoints = (
            record,
            config,
            spared,
            broken,
        )
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
        """To be called when the checkpoint of a step is in its place."""
        saved = self.folder / f"checkpoint-{step}"
        self.corrupt_checkpoints = [path for path in self.corrupt_checkpoints if path != saved]
        spared = {step for step in (self.protected_step, self._update_best()) if step is not None}
        checkpoints.rotate_checkpoints(
            self.folder, self.config.keep_checkpoints, spared, self.corrupt_checkpoints
        )

    def _update_best(self) -> int | None:
        """The step of the lowest validation loss among the checkpoints; of equal ones the first."""
        if not self.config.keep_best:
            return None
        judged: list[dict[str, Any]] = [
            {
                "step": step,
                "eval_loss": self.eval_losses[step],
                "checkpoint": f"{self.folder.name}/{path.name}",
            }
            for path in checkpoints.complete_checkpoints(self.folder, self.corrupt_checkpoints)
            if (step := checkpoints.parse_step(path)) in self.eval_losses
        ]
        best = min(judged, key=lambda entry: entry["eval_loss"], default={})
        if best != self.record.status.get("best", {}):
            self.record.update(best=best)
        return best.get("step")
