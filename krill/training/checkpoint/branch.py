"""Branching: a run that continues from a checkpoint of another run, with another length, schedule or text.

Its purpose: one long stable phase (scheduler=wsd or constant) and several decays from it, of different lengths or on
different text (Hu et al. 2024, "MiniCPM", section 4). The branch is a run with its own folder; its final weights are
bitwise identical to those of a run that had its schedule from the beginning.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from krill.config.schema import TrainConfig
from krill.config.signature import compute_signature
from krill.errors import UsageError
from krill.optim.schedules import stable_phase
from krill.runs import checkpoints
from krill.runs.record import read_status, relative_path
from krill.training.batch_shape import resolve_batch_shape

CHANGEABLE_KEYS = {"steps", "epochs", "scheduler", "branch", "stop", "export_dtype"}
"""The signed keys that a branch may change; the text may differ as well (it is signed by its content), the tokenizer
may not."""


@dataclass(frozen=True)
class Branch:
    """A checkpoint of another run, and that run's configuration and status."""

    run_folder: Path
    checkpoint: Path
    config: TrainConfig
    status: dict[str, Any]

    @property
    def step(self) -> int:
        return checkpoints.parse_step(self.checkpoint)

    @property
    def signature_inputs(self) -> list[Any]:
        """Returns what determines a result of the branch: the run's signature and the step."""
        return [self.status["signature"], self.step]

    def verify_checkpoint(self) -> Path:
        """Returns the path of the checkpoint. Raises UsageError if it fails verification."""
        problems = checkpoints.verify(self.checkpoint)
        if problems:
            raise UsageError(
                f"branch={relative_path(self.checkpoint)}: {problems[0]}; use another checkpoint of that run, "
                "branch=<run>/checkpoints/checkpoint-<step>"
            )
        return self.checkpoint


def resolve_branch(branch: str) -> Branch:
    """Returns the checkpoint of the key `branch`: a checkpoint's path, or a run's, for its last one before the decay.

    Raises:
        UsageError: there is no such checkpoint.
    """
    path = Path(branch).absolute()
    is_run = read_status(path) is not None
    run = path if is_run else path.parents[1]
    status = read_status(run)
    if status is None or not (is_run or path in checkpoints.list_checkpoints(run / "checkpoints")):
        raise UsageError(
            f"branch={branch}: neither a run of krill nor one of its checkpoints; use branch=<run> or "
            "branch=<run>/checkpoints/checkpoint-<step>"
        )
    run_config = _load_run_config(run, path)
    if not is_run:
        return Branch(run, path, run_config, status)
    first, last = stable_phase(run_config.scheduler, status["steps"])
    stable = [
        checkpoint
        for checkpoint in checkpoints.list_checkpoints(run / "checkpoints")
        if first <= checkpoints.parse_step(checkpoint) <= last
    ]
    if not stable:
        raise UsageError(
            f"branch={branch}: no checkpoint of that run is between its warm-up and its decay (steps {first} "
            f"to {last}); with scheduler=wsd the last one before the decay is always kept"
        )
    return Branch(run, stable[-1], run_config, status)


def _load_run_config(run: Path, branch: Path) -> TrainConfig:
    try:
        values = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        return TrainConfig.model_validate(values)
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise UsageError(
            f"branch: {relative_path(run)}/config.yaml is not a training configuration of this version of krill; "
            f"branch from a run of this version, or set model=pretrained model.from={relative_path(branch)}"
        ) from error


def check_branch(branch: Branch, config: TrainConfig, tokenizer_signature: str) -> None:
    """Raises UsageError if training from `branch` could not continue as if it had always had this configuration."""
    run_config, prefix = branch.config, f"branch={relative_path(branch.checkpoint)}"
    differing = [
        key
        for key in TrainConfig.model_fields
        if key not in TrainConfig.get_unsigned_keys() | CHANGEABLE_KEYS
        and compute_signature(getattr(config, key)) != compute_signature(getattr(run_config, key))
    ]
    rows = resolve_batch_shape(config).rows_per_step
    if rows != branch.status["rows_per_step"]:
        differing.append(f"the rows per step ({rows}, {branch.status['rows_per_step']} there)")
    if differing:
        raise UsageError(
            f"{prefix}: {', '.join(differing)} differ from that run's; use from={relative_path(branch.run_folder)} "
            "to take them over. Only length, schedule and text may differ"
        )
    if tokenizer_signature != branch.status["tokenizer"]["signature"]:
        raise UsageError(
            f"{prefix}: that run used another tokenizer; use tokenizer=pretrained "
            f"tokenizer.path={relative_path(Path(branch.status['tokenizer']['folder']))}"
        )
    assert config.steps is not None
    if config.steps <= branch.step:
        raise UsageError(
            f"{prefix}: the checkpoint is at step {branch.step} already; use steps= with more than {branch.step} "
            f"(it is {config.steps})"
        )
    first, last = stable_phase(run_config.scheduler, branch.status["steps"])
    if not first <= branch.step <= last:
        raise UsageError(
            f"{prefix}: its learning rate was not at the peak, but before the end of the warm-up (step {first}) or "
            f"in the decay (from step {last}); use a checkpoint in between"
        )
    first, last = stable_phase(config.scheduler, config.steps)
    if branch.step < first:
        raise UsageError(
            f"{prefix}: the warm-up of this schedule would last until step {first}; use a smaller scheduler.warmup"
        )
    if branch.step > last:
        max_decay = round((config.steps - branch.step) / config.steps, 8)
        raise UsageError(
            f"{prefix}: the decay of this schedule would have started at step {last}, before step {branch.step}; use "
            f"scheduler=wsd scheduler.decay={max_decay} or less, or more steps"
        )


class SaveAtStep(TrainerCallback):
    """Saves a checkpoint after one step, the last of the stable phase; None: never."""

    def __init__(self, step: int | None):
        self.step = step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        control.should_save |= state.global_step == self.step
