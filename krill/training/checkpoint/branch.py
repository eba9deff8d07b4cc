"""A run that branches off another: it goes on from one of its checkpoints, with another length, schedule or text.

What it is for: one long stable phase (scheduler=wsd or constant) and several decays from it, of other lengths or on
other text (Hu et al. 2024, "MiniCPM", section 4). The branch is a run of its own, with its own folder; it ends with
the weights, to the bit, of a run that had its schedule from the beginning.
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
from krill.data.cache import compute_tokenizer_signature
from krill.errors import KrillError, UsageError
from krill.optim.schedules import stable_phase
from krill.runs import checkpoints
from krill.runs.record import read_status, relative_path
from krill.training.batch_shape import resolve_batch_shape

CHANGEABLE_KEYS = {"steps", "epochs", "scheduler", "branch", "stop", "export_dtype"}
"""Of the keys that determine a result; the text counts by its content and may differ as well, the tokenizer not."""


@dataclass(frozen=True)
class Branch:
    """A checkpoint of another run."""

    run_folder: Path
    checkpoint: Path
    config: TrainConfig
    status: dict[str, Any]

    @property
    def step(self) -> int:
        return checkpoints.parse_step(self.checkpoint)

    @property
    def signature_inputs(self) -> list[Any]:
        """What of it determines a result: what it was trained with, and how long."""
        return [self.status["signature"], self.step]

    def verify_checkpoint(self) -> Path:
        """The checkpoint. Raises KrillError if it is not what was saved."""
        wrong = checkpoints.verify(self.checkpoint)
        if wrong:
            raise KrillError(
                "\n".join(wrong)
                + f"\nbranch: {relative_path(self.checkpoint)} does not verify; name another one of that run, "
                "branch=<run>/checkpoints/checkpoint-<step>"
            )
        return self.checkpoint


def resolve_branch(place: str) -> Branch:
    """The checkpoint that branch=`place` names; of a run, its last one before the decay.

    Raises:
        UsageError: there is none.
    """
    named = Path(place).absolute()
    is_run = read_status(named) is not None
    run = named if is_run else named.parents[1]
    status = read_status(run)
    if status is None or not (is_run or named in checkpoints.list_checkpoints(run / "checkpoints")):
        raise UsageError(
            f"branch={place}: neither a run of krill nor one of its checkpoints; write branch=<run> or "
            "branch=<run>/checkpoints/checkpoint-<step>"
        )
    theirs = _load_run_config(run)
    if not is_run:
        return Branch(run, named, theirs, status)
    first, last = stable_phase(theirs.scheduler, status["steps"])
    stable = [
        c
        for c in checkpoints.list_checkpoints(run / "checkpoints")
        if first <= checkpoints.parse_step(c) <= last
    ]
    if not stable:
        raise UsageError(
            f"branch={place}: no checkpoint of that run lies between its warm-up and its decay (steps {first} "
            f"to {last}); with scheduler=wsd the last one before the decay is always kept"
        )
    return Branch(run, stable[-1], theirs, status)


def _load_run_config(run: Path) -> TrainConfig:
    try:
        values = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        return TrainConfig.model_validate(values)
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise UsageError(
            f"branch: {relative_path(run)}/config.yaml is not the configuration of a training by this version of krill"
        ) from error


def check_branch(branch: Branch, config: TrainConfig) -> None:
    """Raise UsageError where the branch could not go on as if it had always been trained so."""
    theirs, what = branch.config, f"branch={relative_path(branch.checkpoint)}"
    other = [
        key
        for key in TrainConfig.model_fields
        if key not in TrainConfig.unsigned_keys() | CHANGEABLE_KEYS
        and compute_signature(getattr(config, key)) != compute_signature(getattr(theirs, key))
    ]
    rows = resolve_batch_shape(config).rows_per_step
    if rows != branch.status["rows_per_step"]:
        other.append(f"the rows of a step ({rows}, {branch.status['rows_per_step']} there)")
    if other:
        raise UsageError(
            f"{what}: {', '.join(other)} differ from that run's; write from={relative_path(branch.run_folder)} to take them over. "
            "Only length, schedule and text may be others"
        )
    if compute_tokenizer_signature(config) != branch.status["tokenizer"]["signature"]:
        raise UsageError(
            f"{what}: that run read its text with another tokenizer; write tokenizer=pretrained "
            f"tokenizer.path={relative_path(Path(branch.status['tokenizer']['folder']))}"
        )
    assert config.steps is not None
    if config.steps <= branch.step:
        raise UsageError(f"{what}: it has {branch.step} steps already, steps={config.steps} goes no further")
    first, last = stable_phase(theirs.scheduler, branch.status["steps"])
    if not first <= branch.step <= last:
        raise UsageError(
            f"{what}: its rate was not at the peak, but before the end of the warm-up (step {first}) or in the decay "
            f"(from step {last}); branch off in between"
        )
    first, last = stable_phase(config.scheduler, config.steps)
    if branch.step < first:
        raise UsageError(
            f"{what}: the warm-up of this schedule would last until step {first}; write a smaller scheduler.warmup"
        )
    if branch.step > last:
        rest = round((config.steps - branch.step) / config.steps, 8)
        raise UsageError(
            f"{what}: the decay of this schedule would have begun at step {last}, before step {branch.step}; write "
            f"scheduler=wsd scheduler.decay={rest} or less, or more steps"
        )


class SaveAtStep(TrainerCallback):
    """Saves after one step: the last of the stable phase; None: nowhere."""

    def __init__(self, step: int | None):
        self.step = step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        control.should_save |= state.global_step == self.step
