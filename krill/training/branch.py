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
from krill.config.signature import signature
from krill.data.obtain import tokenizer_signature
from krill.errors import KrillError, UsageError
from krill.optim.schedules import plateau
from krill.runs import checkpoints
from krill.runs.record import read_status, shown
from krill.training.plan import shape_of

MAY_DIFFER = {"steps", "epochs", "scheduler", "branch", "stop", "export_dtype"}
"""Of the keys that determine a result; the text counts by its content and may differ as well, the tokenizer not."""


@dataclass(frozen=True)
class Branch:
    """A checkpoint of another run."""

    run: Path
    checkpoint: Path
    config: TrainConfig
    status: dict[str, Any]

    @property
    def step(self) -> int:
        return checkpoints.step(self.checkpoint)

    @property
    def identity(self) -> list[Any]:
        """What of it determines a result: what it was trained with, and how long."""
        return [self.status["signature"], self.step]

    def verified(self) -> Path:
        """The checkpoint. Raises KrillError if it is not what was saved."""
        wrong = checkpoints.faults(self.checkpoint)
        if wrong:
            raise KrillError(
                "\n".join(wrong)
                + f"\nbranch: {shown(self.checkpoint)} does not verify; name another one of that run, "
                "branch=<run>/checkpoints/checkpoint-<step>"
            )
        return self.checkpoint


def branch_of(place: str) -> Branch:
    """The checkpoint that branch=`place` names; of a run, its last one before the decay.

    Raises:
        UsageError: there is none.
    """
    named = Path(place).absolute()
    is_run = read_status(named) is not None
    run = named if is_run else named.parents[1]
    status = read_status(run)
    if status is None or not (is_run or named in checkpoints.found(run / "checkpoints")):
        raise UsageError(
            f"branch={place}: neither a run of krill nor one of its checkpoints; write branch=<run> or "
            "branch=<run>/checkpoints/checkpoint-<step>"
        )
    theirs = _config_of(run)
    if not is_run:
        return Branch(run, named, theirs, status)
    first, last = plateau(theirs.scheduler, status["steps"])
    stable = [c for c in checkpoints.found(run / "checkpoints") if first <= checkpoints.step(c) <= last]
    if not stable:
        raise UsageError(
            f"branch={place}: no checkpoint of that run lies between its warm-up and its decay (steps {first} "
            f"to {last}); with scheduler=wsd the last one before the decay is always kept"
        )
    return Branch(run, stable[-1], theirs, status)


def _config_of(run: Path) -> TrainConfig:
    try:
        values = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        return TrainConfig.model_validate(values)
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise UsageError(
            f"branch: {shown(run)}/config.yaml is not the configuration of a training by this version of krill"
        ) from error


def check(branch: Branch, config: TrainConfig) -> None:
    """Raise UsageError where the branch could not go on as if it had always been trained so."""
    theirs, what = branch.config, f"branch={shown(branch.checkpoint)}"
    other = [
        key
        for key in TrainConfig.model_fields
        if key not in TrainConfig.UNSIGNED | MAY_DIFFER
        and signature(getattr(config, key)) != signature(getattr(theirs, key))
    ]
    rows = shape_of(config).rows_per_step
    if rows != branch.status["rows_per_step"]:
        other.append(f"the rows of a step ({rows}, {branch.status['rows_per_step']} there)")
    if other:
        raise UsageError(
            f"{what}: {', '.join(other)} differ from that run's; write from={shown(branch.run)} to take them over. "
            "Only length, schedule and text may be others"
        )
    if tokenizer_signature(config) != branch.status["tokenizer"]["signature"]:
        raise UsageError(
            f"{what}: that run read its text with another tokenizer; write tokenizer=pretrained "
            f"tokenizer.path={shown(Path(branch.status['tokenizer']['folder']))}"
        )
    assert config.steps is not None
    if config.steps <= branch.step:
        raise UsageError(f"{what}: it has {branch.step} steps already, steps={config.steps} goes no further")
    first, last = plateau(theirs.scheduler, branch.status["steps"])
    if not first <= branch.step <= last:
        raise UsageError(
            f"{what}: its rate was not at the peak, but before the end of the warm-up (step {first}) or in the decay "
            f"(from step {last}); branch off in between"
        )
    first, last = plateau(config.scheduler, config.steps)
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


class SaveAt(TrainerCallback):
    """Saves after one step: the last of the stable phase; None: nowhere."""

    def __init__(self, step: int | None):
        self.step = step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        control.should_save |= state.global_step == self.step
