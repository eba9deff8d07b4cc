"""Texts that a model samples for fixed prompts, so that a user sees what its scores mean.

    <run>/evaluations/samples-<signature>.json

The signature covers the weights, the prompts and the sampling parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from krill import atomic
from krill.checksum import ChecksumError, read_checksummed_json, write_checksummed_json
from krill.config.paths import expand_home
from krill.errors import UsageError
from krill.evaluation.model_evaluation import ModelEvaluation
from krill.evaluation.results import get_result_file
from krill.inference.batch import encode_prompts
from krill.inference.conversation import select_template
from krill.inference.defaults import MODEL_KEYS, read_model_defaults, resolve_params
from krill.inference.engine import Generation, GenerationEngine
from krill.inference.prompts import STDIN, Prompt, build_prompt, read_prompts
from krill.runs.scores import EVALUATIONS_FOLDER

SEED = 0
"""Seed of every sample, so that the texts of two models can be compared."""


class PromptSample(BaseModel, frozen=True):
    """The text that a model sampled for a prompt."""

    id: str | int
    prompt: str
    answer: str
    finish_reason: str


class PromptSamples(BaseModel, frozen=True):
    """The texts that a model sampled."""

    kind: Literal["samples"] = "samples"
    model: str
    signature: str
    params: dict[str, Any]
    """Sampling parameters."""
    samples: tuple[PromptSample, ...]


class PromptSampler:
    """Samples texts for the prompts of an evaluation: with the chat template of a model that has one, as krill-infer.

    Raises UsageError for prompts that cannot be used.
    """

    def __init__(self, evaluation: ModelEvaluation, prompts: Sequence[str] | str):
        """`prompts`: texts, or the path of a file of prompts."""
        self.evaluation = evaluation
        self.prompts = _read_texts(prompts)
        files = evaluation.files
        template = select_template("auto", files.folder, files.tokenizer)
        self._encoded = encode_prompts(
            self.prompts, files.tokenizer, template, None, files.read_context_length()
        )
        self._end_ids = template.end_ids if template else frozenset()
        settings = {**dict.fromkeys(MODEL_KEYS), "stop": (), "seed": SEED}
        self.params = resolve_params(settings, read_model_defaults(files.folder))

    def run(self) -> PromptSamples:
        """Returns the samples; those that are there are read, others are generated and written."""
        values = asdict(self.params)
        content = [[prompt.id, prompt.text] for prompt in self.prompts]
        signature = self.evaluation.compute_model_signature("samples", 1, self._encoded, values, content)
        file = get_result_file(self.evaluation.root, "samples", signature)
        samples = None if self.evaluation.again else _read_samples(file, signature)
        if samples is None:
            name = self.evaluation.files.name
            samples = PromptSamples(
                model=name, signature=signature, params=values, samples=tuple(self._generate())
            )
            _write_file(file, samples)
        return samples

    def _generate(self) -> list[PromptSample]:
        subject = self.evaluation.subject
        generations = [Generation(ids, self.params, self._end_ids) for ids in self._encoded]
        GenerationEngine(subject.model, subject.tokenizer).run(generations)
        return [
            PromptSample(
                id=prompt.id, prompt=str(prompt.text), answer=generation.text,
                finish_reason=str(generation.finish_reason),
            )
            for prompt, generation in zip(self.prompts, generations, strict=True)
        ]  # fmt: skip


def write_samples(folder: Path, samples: PromptSamples) -> None:
    """Writes samples to the folder evaluations/ in `folder`."""
    _write_file(get_result_file(folder, "samples", samples.signature), samples)


def read_samples(folders: Iterable[Path]) -> list[PromptSamples]:
    """Returns the samples in the folders evaluations/ of `folders`, those of the same weights once."""
    files = (
        file for folder in folders for file in sorted((folder / EVALUATIONS_FOLDER).glob("samples-*.json"))
    )
    read = [samples for file in files if (samples := _read_samples(file)) is not None]
    return list({samples.signature: samples for samples in read}.values())


def format_samples(samples: PromptSamples) -> list[str]:
    """Returns the prompts, each with the text that was sampled after it, indented; after an empty line."""
    lines = [""]
    for sample in samples.samples:
        lines.append(f"prompt      {_indent(sample.prompt)}")
        lines.append(f"            {_indent(sample.answer.strip())}")
    return lines


def _indent(text: str) -> str:
    return text.replace("\n", "\n" + 12 * " ")


def _read_texts(prompts: Sequence[str] | str) -> list[Prompt]:
    if isinstance(prompts, str):
        if prompts != STDIN and not expand_home(prompts).is_file():
            raise UsageError(
                f"evaluation.prompts={prompts}: no such file (relative to {Path.cwd()}); texts are in brackets: "
                f"'evaluation.prompts=[{prompts}]'"
            )
        read = read_prompts(prompts)
    else:
        read = [
            build_prompt("evaluation.prompts, entry", number, text) for number, text in enumerate(prompts, 1)
        ]
    chat = next((prompt for prompt in read if prompt.messages is not None), None)
    if chat is not None:
        raise UsageError(f"{chat.location}: evaluation.prompts are texts; write them as prompt")
    return read


def _write_file(file: Path, samples: PromptSamples) -> None:
    atomic.create_folder(file.parent)
    write_checksummed_json(file, samples.model_dump(mode="json"))


def _read_samples(file: Path, signature: str | None = None) -> PromptSamples | None:
    """Reads samples; None if they are missing, damaged, or of another signature."""
    try:
        samples = PromptSamples.model_validate(read_checksummed_json(file))
    except (OSError, ChecksumError, ValidationError):
        return None
    return samples if signature in (None, samples.signature) else None
