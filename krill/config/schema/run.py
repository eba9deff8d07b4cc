"""The configuration of krill-train, which krill-preprocess and krill-tokenizer share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from krill.config.schema.base import FolderName, Section, Unsigned, to_list
from krill.config.schema.data import DataConfig
from krill.config.schema.hardware import HardwareConfig
from krill.config.schema.model import ModelConfig
from krill.config.schema.optim import OptimizerConfig, SchedulerConfig
from krill.config.schema.tokenizer import TokenizerConfig


class SweepConfig(Section):
    """How the points of a sweep (-m) are run."""

    max_parallel: Literal["auto"] | PositiveInt
    """Points at once. auto: here one for each GPU, or one after the other on the CPU; on SLURM as many as may run."""
    on_failure: Literal["continue", "stop"]
    """What a point that failed means for those that have not begun."""
    search: Literal["grid", "random", "tpe"]
    """Which points: every combination, or so many drawn from the same space, at random or, with tpe, where those
    before had a low validation loss."""
    trials: PositiveInt | None
    """Points of a search; a grid has none to choose."""


class BatchConfig(Section):
    """What one optimizer step sees."""

    micro_batch_size: PositiveInt
    """Rows per rank and forward pass."""
    gradient_accumulation_steps: PositiveInt | None
    """Forward passes per optimizer step; null: 1, or what batch.tokens asks for."""
    tokens: PositiveInt | None
    """Tokens per optimizer step, in place of the two above (micro_batch_size is then an upper bound)."""

    @model_validator(mode="after")
    def _check_batch_size(self) -> BatchConfig:
        if self.tokens is not None and self.gradient_accumulation_steps is not None:
            raise ValueError(
                "batch.tokens and batch.gradient_accumulation_steps say the same thing; "
                "set one to null: batch.tokens=null or batch.gradient_accumulation_steps=null"
            )
        return self


class EarlyStoppingConfig(Section):
    """What ends a training before its last step; looked at after each validation (eval_every)."""

    target_loss: PositiveFloat | None
    """End when the validation loss, nats per token, is this or less; null: never."""
    patience: PositiveInt | None
    """End when so many validations in a row were not below the lowest before them; null: never."""


class SkipStepConfig(Section):
    """Steps that are left out: their update is masked, and the run goes on without it."""

    nan: Literal["skip", "stop"]
    """A step whose loss or gradient norm is not finite; stop: the run ends, too."""
    spike: PositiveFloat | None
    """Leave out a step whose loss or gradient norm is more than so many standard deviations above the mean of the
    last 128 good steps; null: none."""
    max_skips: Unsigned[PositiveInt]
    """End the run after so many bad steps in a row."""


class HubConfig(Section):
    """Where the result goes on the Hugging Face Hub, if it is to go there at all."""

    id: str | None
    """Repository on the Hub, user/name."""
    push: bool
    """Upload the final model; only ever when asked."""
    checkpoints: bool
    """Upload the newest checkpoint after each save, to go on from it on another machine; only ever when asked."""
    private: bool
    """The repository is made private."""

    @model_validator(mode="after")
    def _check_repository_id(self) -> HubConfig:
        for key in ("push", "checkpoints"):
            if getattr(self, key) and self.id is None:
                raise ValueError(f"hub.{key}=true needs a repository: hub.id=user/name")
        return self


class TrainConfig(Section):
    """One run, from raw text to a trained model. preprocess and tokenizer read the same configuration."""

    name: Unsigned[FolderName]
    """Names the run's folder: outputs/runs/<name>/."""
    seed: NonNegativeInt
    """Seed of the weights and of the order of rows."""
    lr: PositiveFloat
    """Learning rate on the AdamW scale, for every optimizer."""
    steps: PositiveInt | None
    """Optimizer steps. Exactly one of steps and epochs is set; setting one clears the other."""
    epochs: PositiveFloat | None
    """Passes over the training rows."""
    sequence_len: Annotated[int, Field(ge=8)]
    """Tokens per row."""
    packing: Literal["wrapped", "best_fit"]
    """How documents fill rows: wrapped cuts wherever a row ends, best_fit only documents longer than a row."""
    resume: Unsigned[bool | str]
    """auto: go on with the newest unfinished run of this configuration, else begin (with hub.checkpoints from the Hub
    where that is newer); local, true: go on or fail; remote: go on from hub.id or fail; false: always begin; or the
    folder of an unfinished run."""
    resume_changed: Unsigned[bool]
    """Go on in the folder that resume= names although what determines the result has changed; what is listed."""
    branch: Unsigned[str | None]
    """Run, or checkpoint of a run, to branch off: go on from there with another length, schedule or text."""
    output: Unsigned[str | None]
    """Folder of the result; null: a new one below outputs/."""
    device: Unsigned[Literal["auto", "cpu", "cuda"]]
    """Where the model is computed."""
    dry_run: Unsigned[bool]
    """Write nothing, print what the command would do."""
    detach: Unsigned[bool]
    """Submit to SLURM and return; false: wait, and show how far it is."""
    log_every: Unsigned[PositiveInt]
    """Steps between two lines of metrics."""
    trackers: Unsigned[Annotated[list[Literal["tensorboard", "trackio", "wandb"]], BeforeValidator(to_list)]]
    """Where the metrics go beside metrics.jsonl; each needs the extra of its name."""
    eval_every: Unsigned[PositiveInt]
    """Steps between two validations."""
    save_every: Unsigned[PositiveInt]
    """Steps between two checkpoints."""
    keep_checkpoints: Unsigned[PositiveInt]
    """Checkpoints that are kept, newest first."""
    keep_best: Unsigned[bool]
    """Keep the checkpoint of the lowest validation loss as well, of those saved at a step with a validation."""
    save_in_background: Unsigned[bool]
    """Write checkpoints while the training goes on, from a copy of weights and optimizer state in host memory."""
    export_dtype: Literal["fp32", "bf16"]
    """Numbers of the finished model in model/; those of training and checkpoints are fp32 always."""
    sample_every: Unsigned[PositiveInt | None]
    """Steps between two samples of what the model writes, in samples.jsonl; null: only of the finished model."""
    sample_prompt: Unsigned[str | None]
    """What samples continue; null: a document of their own."""
    model: ModelConfig
    data: Unsigned[DataConfig]
    tokenizer: Unsigned[TokenizerConfig]
    optimizer: OptimizerConfig
    scheduler: SchedulerConfig
    hardware: HardwareConfig
    batch: Unsigned[BatchConfig]
    stop: EarlyStoppingConfig
    skip_step: SkipStepConfig
    hub: Unsigned[HubConfig]
    sweep: Unsigned[SweepConfig]

    @field_validator("resume")
    @classmethod
    def _check_resume(cls, value: bool | str) -> bool | str:
        if isinstance(value, str) and not value:
            raise ValueError("resume is empty; write resume=auto, local, remote, true, false or a folder")
        return value

    @model_validator(mode="after")
    def _check_remote_id(self) -> TrainConfig:
        if self.resume == "remote" and self.hub.id is None:
            raise ValueError("resume=remote needs a repository: hub.id=user/name")
        return self

    @model_validator(mode="after")
    def _check_derived_keys(self) -> TrainConfig:
        if self.optimizer.lr != self.lr:
            raise ValueError(f"optimizer.lr follows lr; write lr={self.optimizer.lr:g}")
        if self.model.max_position_embeddings < self.sequence_len:
            raise ValueError("model.max_position_embeddings is less than sequence_len; leave it to follow")
        rows, rest = divmod(self.batch.tokens or self.sequence_len, self.sequence_len)
        if rest:
            near = " or ".join(str(count * self.sequence_len) for count in (rows, rows + 1) if count)
            raise ValueError(
                f"batch.tokens={self.batch.tokens} is no multiple of sequence_len={self.sequence_len}; write {near}"
            )
        return self

    @model_validator(mode="after")
    def _check_async_save(self) -> TrainConfig:
        if self.save_in_background and self.hardware.sharding == "fsdp2":
            raise ValueError(
                "save_in_background: a sharded checkpoint is written by all ranks together; write "
                "save_in_background=false or hardware.sharding=none"
            )
        return self

    @model_validator(mode="after")
    def _check_training_length(self) -> TrainConfig:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("exactly one of steps and epochs must be set; write steps=400 or epochs=1")
        if self.branch is not None and self.steps is None:
            raise ValueError("branch= needs steps=, those of the whole run, not epochs=")
        return self
