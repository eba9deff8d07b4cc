"""The configuration of krill-infer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from krill.config.schema.base import FolderName, Rate, RateOrZero, RunName, Section, Seed, Size, Unsigned
from krill.config.schema.hardware import HardwareConfig
from krill.config.schema.run import SweepConfig


class ModelPathConfig(Section):
    """The location of a trained model."""

    path: RunName
    """Run (its folder, its name, a glob, last, SWEEP/best), folder of a model, or a Hub id; model=X is short for
    model.path=X. Without it, the newest finished run."""


class TokenizerPathConfig(Section):
    """The location of the model's tokenizer."""

    path: str | None
    """Folder or Hub id; null: the tokenizer saved with the model. tokenizer=X sets it to a folder, a Hub id,
    or the tokenizer of an option."""


class ModelCommandConfig(Section):
    """What every command has that uses a trained model."""

    name: Unsigned[FolderName]
    """Name of the folder of a sweep (-m)."""
    model: ModelPathConfig
    tokenizer: TokenizerPathConfig
    device: Unsigned[Literal["auto", "cpu", "cuda"]]
    """Device that the model runs on. auto: a CUDA device if there is one, otherwise the CPU; cuda: an error if
    there is none."""
    dry_run: Unsigned[bool]
    """Write nothing; print what the command would do."""
    detach: Unsigned[bool]
    """Submit to SLURM and return; false: wait for the result and print it."""
    hardware: Unsigned[HardwareConfig]
    """Where the command runs: on this machine, or in the SLURM job in hardware.slurm. The other keys have no
    effect."""
    sweep: Unsigned[SweepConfig]


class InferConfig(ModelCommandConfig):
    """Text generation with a trained model."""

    prompt: str | None
    """Text to continue; null: read prompts from the terminal, line by line."""
    max_new_tokens: Size
    """Maximum number of generated tokens."""
    temperature: RateOrZero
    """Sampling temperature; 0: always the most likely token."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)]
    """Sample from the most likely tokens with this total probability."""
    repetition_penalty: Rate
    """Factor that makes tokens that have occurred already less likely; 1: no penalty."""
    seed: Seed
    """Seed of the sampling."""
    output: Unsigned[str | None]
    """Folder that answers.jsonl is written to; null: it is not written."""
