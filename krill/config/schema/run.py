"""The configuration of krill-train, which krill-preprocess and krill-tokenizer share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from krill.config.number_limits import MAX_COUNT, MAX_INT
from krill.config.schema.base import (
    Count,
    FolderName,
    OutputPath,
    Rate,
    RunName,
    RunNameValidator,
    Section,
    Seed,
    Size,
    Unsigned,
    to_list,
)
from krill.config.schema.data import DataConfig
from krill.config.schema.evaluate import EvaluationConfig
from krill.config.schema.hardware import HardwareConfig
from krill.config.schema.model import ModelConfig
from krill.config.schema.optim import OptimizerConfig, SchedulerConfig
from krill.config.schema.sweep import SweepConfig
from krill.config.schema.tokenizer import TokenizerConfig
from krill.config.size_rule import AUTO


def _read_off(value: object) -> object:
    return "off" if value is False else value  # as YAML reads it


class BatchConfig(Section):
    """The size of an optimizer step."""

    micro_batch_size: Annotated[int, Field(gt=0, le=2**20)]
    """Rows per rank and forward pass."""
    gradient_accumulation_steps: Size | None
    """Forward passes per optimizer step; null: 1, or derived from batch.tokens."""
    tokens: Literal["auto"] | Count | None
    """Tokens per optimizer step; alternative to gradient_accumulation_steps, with micro_batch_size as an
    upper bound. auto: by rule, the nearest multiple of one micro batch on each rank; null: one micro batch."""

    @property
    def fixed_tokens(self) -> int | None:
        """The tokens per step that are set; None: they follow from the other keys."""
        return None if self.tokens == AUTO else self.tokens

    @model_validator(mode="after")
    def _check_batch_size(self) -> BatchConfig:
        if self.fixed_tokens is not None and self.gradient_accumulation_steps is not None:
            raise ValueError(
                "batch.tokens and batch.gradient_accumulation_steps both set the size of a step; "
                "set one to null: batch.tokens=null or batch.gradient_accumulation_steps=null"
            )
        return self


class EarlyStoppingConfig(Section):
    """Conditions that end training before its last step; checked after each validation (eval_every) and each
    evaluation (evaluation.every)."""

    target_loss: Rate | None
    """End when the validation loss (nats per token) is at most this value; null: never."""
    target: Unsigned[float | None]
    """End when best_metric, a score of a task, has reached this value; null: never."""
    patience: Size | None
    """End after this number of consecutive values of best_metric without a new best one; null: never."""


class TrainEvaluationConfig(EvaluationConfig):
    """Evaluation of the model in training, and of the final model."""

    every: Size | None
    """Steps between two evaluations of the model in training, after the last step too; null: none during the
    training."""
    at_end: Unsigned[Literal["auto"] | bool]
    """Evaluate the final model. auto: if tasks or every are set, or else if it takes less than 5 % of the time of the
    run."""


class SkipStepConfig(Section):
    """Steps that are skipped: their update is masked, and training continues without it."""

    nan: Literal["skip", "stop"]
    """What to do about a step whose loss or gradient norm is not finite: skip it, or skip it and stop the
    run."""
    spike: Rate | None
    """Skip a step whose loss or gradient norm is more than this number of standard deviations above the mean
    of the last 128 good steps; null: skip none."""
    max_skips: Unsigned[Size]
    """End the run after this number of consecutive bad steps."""


class HubConfig(Section):
    """Uploads to the Hugging Face Hub."""

    id: str | None
    """Repository on the Hub, user/name, to upload to with push and checkpoints, and to resume from."""
    push: bool
    """Upload the final model."""
    checkpoints: bool
    """Upload the newest checkpoint after each save, to resume from it on another machine."""
    private: bool
    """Create the repository as private."""

    @model_validator(mode="after")
    def _check_repository_id(self) -> HubConfig:
        for key in ("push", "checkpoints"):
            if getattr(self, key) and self.id is None:
                raise ValueError(f"hub.{key}=true needs a repository; set hub.id=user/name")
        return self


class TrainConfig(Section):
    """A run from raw text to a trained model. krill-preprocess and krill-tokenizer use the same
    configuration."""

    name: Unsigned[FolderName]
    """Name of the folder of the runs: outputs/runs/<name>/."""
    seed: Seed
    """Seed of the initial weights and of the order of rows."""
    rule: Unsigned[Annotated[Literal["size", "off"], BeforeValidator(_read_off)]]
    """What the defaults of lr, batch.tokens, optimizer.weight_decay and scheduler.warmup follow. size: the hidden
    parameters and the steps of the run, by the rule in docs/training.md; off: nothing, they are fixed values."""
    lr: Rate
    """Learning rate on the AdamW scale, for every optimizer; follows rule."""
    lr_scale: Unsigned[Rate]
    """Factor of the learning rate that rule gives; not with a learning rate that is set."""
    steps: Size | None
    """Number of optimizer steps. Exactly one of steps and epochs is set; setting one clears the other."""
    epochs: Annotated[float, Field(gt=0.0, le=1e6)] | None
    """Number of passes over the training rows."""
    sequence_len: Annotated[int, Field(ge=8, le=MAX_INT)]
    """Tokens per row."""
    packing: Literal["wrapped", "best_fit"]
    """How documents fill rows: wrapped splits them wherever a row ends, best_fit only if they are longer than
    a row."""
    resume: Unsigned[Annotated[bool | str, RunNameValidator]]
    """auto: resume the newest unfinished run of this configuration (with hub.checkpoints, from the Hub if
    that checkpoint is newer), otherwise start a run. local, true: resume or fail. remote: resume from hub.id
    or fail. false: always start a run. Or an unfinished run: its folder, its name, last."""
    resume_changed: Unsigned[bool]
    """Resume the run that resume= names even if keys that determine the result have changed; the changes are
    logged."""
    branch: Unsigned[RunName | None]
    """Run (its folder, its name, last, SWEEP/best), or checkpoint of a run, to branch from: continue it with
    another length, schedule or text."""
    branch_schedule: Unsigned[Literal["exact", "auto", "rewarm", "decay", "constant"]]
    """Learning rate of a branch. exact: as if it had always had this schedule, from a checkpoint at the peak rate.
    Otherwise the schedule starts again over the new steps: rewarm, from the earlier rate up to the peak; decay,
    at the peak at once; constant, at the earlier rate. auto (continue=): exact where possible, else rewarm."""
    output: Unsigned[OutputPath | None]
    """Folder of the result; null: a new folder in outputs/."""
    device: Unsigned[Literal["auto", "cpu", "cuda"]]
    """Device that the model runs on. auto: a CUDA device if there is one, otherwise the CPU; cuda: an error if
    there is none."""
    dry_run: Unsigned[bool]
    """Write nothing; print what the command would do."""
    detach: Unsigned[bool]
    """Submit to SLURM and return; false: wait and show progress."""
    log_every: Unsigned[Size]
    """Steps between two records of metrics."""
    trackers: Unsigned[Annotated[list[Literal["tensorboard", "trackio", "wandb"]], BeforeValidator(to_list)]]
    """Trackers that receive the metrics in addition to metrics.jsonl; each needs the extra of its name."""
    eval_every: Unsigned[Size]
    """Steps between two validations."""
    eval_tokens: Unsigned[Size | None]
    """Tokens to predict in a validation: documents sampled from the validation split, the same in each
    validation and each run on these tokens; null: all of the split."""
    save_every: Unsigned[Size]
    """Steps between two checkpoints."""
    keep_checkpoints: Unsigned[Size]
    """Number of checkpoints to keep, newest first."""
    keep_best: Unsigned[bool]
    """Also keep the checkpoint with the best value of best_metric among checkpoints saved at a step that has
    one."""
    best_metric: Unsigned[str]
    """Metric that keep_best, stop.patience and stop.target follow. eval_loss: the validation loss. Or a score of
    evaluation.tasks, TASK/METRIC or TASK/METRIC/PART, such as english_pairs/accuracy; needs evaluation.every."""
    save_in_background: Unsigned[bool]
    """Write checkpoints while training continues, from a copy of weights and optimizer state in host
    memory."""
    export_dtype: Literal["fp32", "bf16"]
    """Data type of the final model in model/; training and checkpoints always use fp32."""
    sample_every: Unsigned[Size | None]
    """Steps between two samples of generated text in samples.jsonl; null: only of the final model."""
    sample_prompt: Unsigned[str | None]
    """Prompt of the samples; null: each sample begins a document."""
    model: ModelConfig
    data: Unsigned[DataConfig]
    tokenizer: Unsigned[TokenizerConfig]
    optimizer: OptimizerConfig
    scheduler: SchedulerConfig
    hardware: HardwareConfig
    batch: Unsigned[BatchConfig]
    evaluation: Unsigned[TrainEvaluationConfig]
    stop: EarlyStoppingConfig
    skip_step: SkipStepConfig
    hub: Unsigned[HubConfig]
    sweep: Unsigned[SweepConfig]

    @field_validator("resume")
    @classmethod
    def _check_resume(cls, value: bool | str) -> bool | str:
        if isinstance(value, str) and not value:
            raise ValueError("resume is empty; set resume=auto, local, remote, true, false or a folder")
        return value

    @model_validator(mode="after")
    def _check_remote_id(self) -> TrainConfig:
        if self.resume == "remote" and self.hub.id is None:
            raise ValueError("resume=remote needs a repository; set hub.id=user/name")
        return self

    @model_validator(mode="after")
    def _check_best_metric(self) -> TrainConfig:
        follows_loss = self.best_metric == "eval_loss"
        if not follows_loss and self.evaluation.every is None:
            raise ValueError(
                f"best_metric={self.best_metric} is measured during the training; set evaluation.every, a number of "
                "steps"
            )
        if follows_loss and self.stop.target is not None:
            raise ValueError(
                "stop.target is a value of best_metric=TASK/METRIC; for the validation loss set stop.target_loss"
            )
        return self

    @property
    def stops_early(self) -> bool:
        """Whether the run may end before its last step."""
        return any(
            value is not None for value in (self.stop.target_loss, self.stop.target, self.stop.patience)
        )

    @property
    def stops_by_score(self) -> bool:
        """Whether the run may end before its last step because of the score of a task."""
        follows_score = self.best_metric != "eval_loss"
        return follows_score and (self.stop.target is not None or self.stop.patience is not None)

    @model_validator(mode="after")
    def _check_derived_keys(self) -> TrainConfig:
        if self.optimizer.lr != self.lr:
            raise ValueError(f"optimizer.lr follows lr; set lr={self.optimizer.lr:g}")
        if self.model.max_position_embeddings < self.sequence_len:
            raise ValueError(
                "model.max_position_embeddings is less than sequence_len; leave it out, it follows sequence_len"
            )
        tokens = (
            self.batch.micro_batch_size * (self.batch.gradient_accumulation_steps or 1) * self.sequence_len
        )
        if tokens > MAX_COUNT:
            raise ValueError(
                f"batch.micro_batch_size × batch.gradient_accumulation_steps × sequence_len are {tokens:,} tokens "
                "per step; make one of them smaller"
            )
        rows, rest = divmod(self.batch.fixed_tokens or self.sequence_len, self.sequence_len)
        if rest:
            valid = " or ".join(str(count * self.sequence_len) for count in (rows, rows + 1) if count)
            raise ValueError(
                f"batch.tokens={self.batch.tokens} is not a multiple of sequence_len={self.sequence_len}; use {valid}"
            )
        return self

    @model_validator(mode="after")
    def _check_async_save(self) -> TrainConfig:
        if self.save_in_background and self.hardware.sharding != "none":
            raise ValueError(
                "save_in_background: all ranks write a sharded checkpoint together; set "
                "save_in_background=false or hardware.sharding=none"
            )
        return self

    @model_validator(mode="after")
    def _check_training_length(self) -> TrainConfig:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("exactly one of steps and epochs must be set; use steps=400 or epochs=1")
        if self.branch is not None and self.steps is None:
            raise ValueError("branch= needs the steps of the whole run; set steps= instead of epochs=")
        return self
