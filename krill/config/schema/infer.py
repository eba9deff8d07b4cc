"""The configuration of krill-infer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from krill.config.number_limits import MAX_FLOAT
from krill.config.schema.base import (
    CountOrZero,
    FolderName,
    OutputPath,
    PositiveShare,
    RunName,
    Section,
    Seed,
    Share,
    Size,
    Unsigned,
    to_list,
    validate_unicode,
)
from krill.config.schema.hardware import HardwareConfig
from krill.config.schema.sweep import SweepConfig

MIN_TEMPERATURE = 1e-6
"""The smallest temperature besides 0: logits that are divided by a smaller one may become infinite."""


def _check_temperature(value: float) -> float:
    if 0 < value < MIN_TEMPERATURE:
        raise ValueError(f"use 0, or at least {MIN_TEMPERATURE}")
    return value


Temperature = Annotated[float, Field(ge=0.0, le=MAX_FLOAT), AfterValidator(_check_temperature)]
"""A sampling temperature; 0: greedy decoding."""

RepetitionPenalty = Annotated[float, Field(ge=0.1, le=10.0)]
"""A factor of logits; outside of this range they may become infinite."""

StopText = Annotated[str, Field(min_length=1), AfterValidator(validate_unicode)]
"""A text at which an answer ends."""


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


def _read_escapes(value: object) -> object:
    r"""Returns stop texts with the escapes \n and \t, which cannot be typed in a shell, as the characters."""
    texts = to_list(value)
    if not isinstance(texts, list):
        return texts
    return [
        text.replace("\\n", "\n").replace("\\t", "\t") if isinstance(text, str) else text for text in texts
    ]


class InferConfig(ModelCommandConfig):
    """Text generation with a trained model. A sampling key that is null is what the model's generation_config.json
    sets, or else krill's default."""

    prompt: str | None
    """Text to continue, or the message to answer; null: read prompts from the terminal, or one per line from a
    pipe."""
    prompts: Unsigned[str | None]
    """File of prompts to answer in batches: .jsonl with the key prompt (or messages) and optionally id, .txt with a
    prompt per line, .parquet with a column prompt, or - for the lines of standard input. The answers are written to
    answers.jsonl."""
    chat: Literal["auto"] | bool
    """Answer in the model's chat template: in a session the turns are kept. auto: if the tokenizer has a template,
    and the model ends its answers as the template does, which a model that was only pretrained does not."""
    system: str | None
    """System message of a chat."""
    n: Size
    """Number of answers to each prompt, with the seeds seed, seed + 1, ..."""
    max_new_tokens: Size | None
    """Maximum number of generated tokens. krill's default: 128."""
    min_new_tokens: CountOrZero | None
    """Number of tokens before which an answer does not end. krill's default: 0."""
    temperature: Temperature | None
    """Sampling temperature; 0: always the most likely token. krill's default: 0.6."""
    top_k: CountOrZero | None
    """Sample from this number of most likely tokens; 0: from all. krill's default: 0."""
    top_p: PositiveShare | None
    """Sample from the most likely tokens with this total probability. krill's default: 0.95."""
    min_p: Share | None
    """Sample from tokens with at least this share of the highest probability. krill's default: 0."""
    typical_p: PositiveShare | None
    """Sample from the most typical tokens with this total probability (Meister et al. 2023). krill's default: 1."""
    repetition_penalty: RepetitionPenalty | None
    """Factor that makes tokens that have occurred already less likely; 1: no penalty. krill's default: 1.5."""
    no_repeat_ngram_size: CountOrZero | None
    """Length of sequences of tokens that may occur only once; 0: any may be repeated. krill's default: 0."""
    stop: Annotated[list[StopText], BeforeValidator(_read_escapes)]
    r"""Texts at which an answer ends, without being part of it; \n in one is a line break."""
    seed: Seed
    """Seed of the sampling."""
    inspect: bool
    """Show what the model expected at each token of an answer: its probability, before temperature and the other
    sampling parameters, and its alternatives; in output=, tokens.html and tokens.json. With prompts= or -m the scores
    are in answers.jsonl."""
    max_batch_size: Unsigned[Size]
    """Number of prompts that are answered at once with prompts=; halved when the device is out of memory."""
    history: Unsigned[bool]
    """Keep what is typed in a session for the next one, in $XDG_STATE_HOME/krill/history (~/.local/state)."""
    output: Unsigned[OutputPath | None]
    """Folder that answers.jsonl is written to; null: a folder in outputs/answers for prompts=, otherwise it is not
    written."""
    hardware: Unsigned[HardwareConfig]
    """Where the command runs: on this machine, or in the SLURM job in hardware.slurm. precision is the type that
    the model computes in (auto: fp32 on the CPU, on CUDA that of the saved weights), compile is for prompts= on
    CUDA, and processes share out the prompts of prompts=. The other keys have no effect."""
