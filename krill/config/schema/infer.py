"""The configuration of krill-infer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from krill.config.schema.base import FolderName, Section, Unsigned
from krill.config.schema.hardware import HardwareConfig
from krill.config.schema.run import SweepConfig


class ModelPathConfig(Section):
    """Where a trained model is."""

    path: str
    """Folder of a run or model, a glob, or a Hub id; model=X is short for it."""


class TokenizerPathConfig(Section):
    """Where the model's tokenizer is."""

    path: str | None
    """Folder or Hub id; null: the one beside the model. tokenizer=X is short for it, or an option's tokenizer."""


class InferConfig(Section):
    """Text from a trained model."""

    name: Unsigned[FolderName]
    """Names the sweep's folder when several settings are tried with -m."""
    model: ModelPathConfig
    tokenizer: TokenizerPathConfig
    prompt: str | None
    """The text to continue; null: a prompt is asked for, line by line."""
    max_new_tokens: PositiveInt
    """At most so many tokens are generated."""
    temperature: NonNegativeFloat
    """Randomness of the choice; 0: always the most likely token."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)]
    """Only the most likely tokens with this total probability are drawn from."""
    repetition_penalty: PositiveFloat
    """Tokens that were used already are made less likely by this factor; 1: not."""
    seed: NonNegativeInt
    """Seed of the choice."""
    device: Unsigned[Literal["auto", "cpu", "cuda"]]
    """Where the model is computed."""
    output: Unsigned[str | None]
    """Folder that receives answers.jsonl; null: none is written."""
    dry_run: Unsigned[bool]
    """Write nothing, print what the command would do."""
    detach: Unsigned[bool]
    """Submit to SLURM and return; false: wait, and print the answer."""
    hardware: Unsigned[HardwareConfig]
    """Where the model answers; what is about training has no effect here."""
    sweep: Unsigned[SweepConfig]
