"""Branching: a run that continues from a checkpoint of another run, with another length, schedule or text.

One purpose is one long stable phase (scheduler=wsd or constant) and several decays from it, of different lengths or
on different text (Hu et al. 2024, "MiniCPM", section 4). The branch is a run with its own folder; its final weights
are bitwise identical to those of a run that had its schedule from the beginning.

The other is a longer training of a run whose learning rate has decayed (continue=): weights, optimizer state and the
position in the text are those of the checkpoint, and branch_schedule sets how the schedule starts again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from krill.config.paths import relative_path
from krill.config.schema import TrainConfig
from krill.config.signature import compute_signature
from krill.errors import UsageError
from krill.optim.schedules import Restart, stable_phase
from krill.runs import checkpoints
from krill.runs.record import find_status_damage, read_config, read_status
from krill.tokenizer.artifact import load_tokenizer
from krill.training.batch_shape import resolve_batch_shape

CHANGEABLE_KEYS = {"steps", "epochs", "scheduler", "branch", "stop", "export_dtype"}
"""The signed keys that a branch may change; the text may differ as well (it is signed by its content), the tokenizer
may not."""
RATE_KEYS = {
    "lr", "muon_lr", "lr_embeddings", "lr_head", "lr_vectors", "weight_decay", "muon_weight_decay",
    "weight_decay_embeddings",
}  # fmt: skip
"""The keys of the optimizer that may change too where the schedule restarts."""
STATUS_KEYS = ("steps", "rows_per_step", "tokenizer")
"""Keys of status.json that a branch compares with its own."""
SCHEDULER_FILE = "scheduler.pt"


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
    def stable_phase(self) -> tuple[int, int]:
        """Returns the first and the last step at which the run's learning rate was at its peak."""
        restart = (self.status.get("branch") or {}).get("restart")
        return stable_phase(self.config.scheduler, self.status["steps"], restart and Restart(**restart))

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
        if damage := find_status_damage(path) or find_status_damage(run):
            raise UsageError(f"branch={branch}: status.json of that run {damage}; restore it")
        raise UsageError(
            f"branch={branch}: neither a run of krill nor one of its checkpoints; use branch=<run> or "
            "branch=<run>/checkpoints/checkpoint-<step>"
        )
    if missing := [key for key in STATUS_KEYS if status.get(key) is None]:
        raise UsageError(f"branch={branch}: status.json of that run has no {missing[0]}; restore it")
    run_config = _load_run_config(run, path)
    if not is_run:
        return Branch(run, path, run_config, status)
    saved = checkpoints.list_checkpoints(run / "checkpoints")
    first, last = Branch(run, path, run_config, status).stable_phase
    stable = [checkpoint for checkpoint in saved if first <= checkpoints.parse_step(checkpoint) <= last]
    if not stable:
        raise UsageError(
            f"branch={branch}: no checkpoint of that run is between its warm-up and its decay (steps {first} "
            f"to {last}); with scheduler=wsd the last one before the decay is always kept. To continue from its last "
            f"checkpoint with a restarted schedule: continue={branch} steps=<more than {status['steps']}>"
        )
    return Branch(run, stable[-1], run_config, status)


def _load_run_config(run: Path, branch: Path) -> TrainConfig:
    try:
        return TrainConfig.model_validate(read_config(run))
    except ValidationError as error:
        raise UsageError(
            f"branch: {relative_path(run)}/config.yaml is not a training configuration of this version of krill; "
            f"branch from a run of this version, or set model=pretrained model.from={relative_path(branch)}"
        ) from error


def get_branch_identity(config: TrainConfig) -> list[Any]:
    """Returns what determines the result of a branch: the run's signature, the step and the schedule's restart."""
    assert config.branch is not None
    branch = resolve_branch(config.branch)
    kind = _resolve_restart_kind(branch, config)
    return [branch.status["signature"], branch.step, *([kind] if kind else [])]


def resolve_restart(branch: Branch, config: TrainConfig) -> Restart | None:
    """Returns how the schedule starts again at the checkpoint; None: as if it had always been this schedule.

    Raises UsageError for branch_schedule=constant if the learning rate of the checkpoint is zero.
    """
    kind = _resolve_restart_kind(branch, config)
    if kind is None:
        return None
    try:
        state = torch.load(branch.checkpoint / SCHEDULER_FILE, "cpu", weights_only=True)
        earlier_lr = branch.config.lr * state["_last_lr"][0] / state["base_lrs"][0]
    except Exception as error:  # torch raises errors of several types for a damaged file
        branch.verify_checkpoint()
        raise UsageError(
            f"branch={relative_path(branch.checkpoint)}: {SCHEDULER_FILE} cannot be read ({error})"
        ) from error
    if kind == "constant" and earlier_lr == 0:
        raise UsageError(
            f"branch_schedule=constant: the learning rate of {relative_path(branch.checkpoint)} is zero; use "
            "branch_schedule=rewarm"
        )
    return Restart(kind, branch.step, min(1.0, earlier_lr / config.lr))


def _resolve_restart_kind(
    branch: Branch, config: TrainConfig
) -> Literal["rewarm", "decay", "constant"] | None:
    if config.branch_schedule == "exact":
        return None
    if config.branch_schedule != "auto":
        return config.branch_schedule
    first, last = branch.stable_phase
    new_first, new_last = stable_phase(config.scheduler, config.steps or 1)
    has_same_rates = all(
        getattr(config.optimizer, key, None) == getattr(branch.config.optimizer, key, None)
        for key in RATE_KEYS
    )
    is_exact = max(first, new_first) <= branch.step <= min(last, new_last) and has_same_rates
    return None if is_exact else "rewarm"


def check_branch(branch: Branch, config: TrainConfig, tokenizer_signature: str) -> None:
    """Raises UsageError if training from `branch` could not continue as if it had always had this configuration."""
    run_config, prefix = branch.config, f"branch={relative_path(branch.checkpoint)}"
    restart = resolve_restart(branch, config)
    signed = TrainConfig.model_fields.keys() - TrainConfig.get_unsigned_keys() - CHANGEABLE_KEYS
    differing = [
        key
        for key in TrainConfig.model_fields
        if key in signed
        and _get_compared_value(config, key, restart) != _get_compared_value(run_config, key, restart)
    ]
    rows = resolve_batch_shape(config).rows_per_step
    if rows != branch.status["rows_per_step"]:
        differing.append(f"the rows per step ({rows}, {branch.status['rows_per_step']} there)")
    if differing:
        raise UsageError(
            f"{prefix}: {', '.join(differing)} differ from that run's; use from={relative_path(branch.run_folder)} "
            "with branch=, or leave them out with continue=, to take them over. Only length, schedule and text may "
            "differ"
        )
    if tokenizer_signature != branch.status["tokenizer"]["signature"]:
        raise UsageError(
            f"{prefix}: that run used another tokenizer; use tokenizer=pretrained "
            f"tokenizer.path={relative_path(Path(branch.status['tokenizer']['folder']))}"
        )
    if (branch.checkpoint / "tokenizer.json").is_file():
        load_tokenizer(branch.checkpoint)  # raises KrillError if it gives other ids than at that time
    assert config.steps is not None
    if config.steps <= branch.step:
        raise UsageError(
            f"{prefix}: the checkpoint is at step {branch.step} already; use steps= with more than {branch.step} "
            f"(it is {config.steps})"
        )
    if restart is not None:
        return
    first, last = branch.stable_phase
    if not first <= branch.step <= last:
        raise UsageError(
            f"{prefix}: its learning rate was not at the peak, but before the end of the warm-up (step {first}) or "
            f"in the decay (from step {last}); use a checkpoint in between, or restart the schedule with "
            "branch_schedule=rewarm"
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


def _get_compared_value(config: TrainConfig, key: str, restart: Restart | None) -> Any:
    """Returns the value of a key that a branch shares with its run; rates may differ where a schedule restarts."""
    value = getattr(config, key)
    if restart is not None and key == "lr":
        return None
    if restart is not None and key == "optimizer":
        return {name: item for name, item in value.model_dump().items() if name not in RATE_KEYS}
    return compute_signature(value)


class SaveAtStep(TrainerCallback):
    """Saves a checkpoint after one step, the last of the stable phase; None: never."""

    def __init__(self, step: int | None):
        self.step = step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        control.should_save |= state.global_step == self.step
