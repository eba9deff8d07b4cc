"""Answers many prompts with one model, and resumes after a kill.

    answers.jsonl                            the answers in the order of the prompts, when all are complete
    settings.json                            what they were generated with
    .answers-<signature>.jsonl               answers of earlier processes, while some are missing
    .answers-<signature>-rank<rank>.jsonl    answers of a process that runs, as they are completed

The signature covers the weights, the prompts and all settings that change an answer, so that answers of different
settings are never mixed.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from krill import atomic
from krill.errors import UsageError
from krill.inference.conversation import ChatTemplate
from krill.inference.engine import Generation, GenerationEngine
from krill.inference.generate import encode_prompt
from krill.inference.load import LoadedModel
from krill.inference.prompts import Prompt
from krill.inference.sampling import SamplingParams
from krill.inference.token_scores import TokenScore
from krill.tokenizer.artifact import TokenizerFolder

ANSWERS, SETTINGS = "answers.jsonl", "settings.json"
Key = tuple[int, int]
"""Index of a prompt, and of one of the answers to it."""


@dataclass(frozen=True)
class Answer:
    """One answer to one prompt."""

    prompt: int
    """Index of the prompt."""
    sample: int
    answer: str
    finish_reason: str
    prompt_tokens: int
    answer_tokens: int
    seed: int
    scores: list[dict[str, Any]] | None = None
    """The score of each token, as values for JSON; None: not scored."""


class AnswerFiles:
    """The files of a batch in one folder."""

    def __init__(self, folder: Path, signature: str):
        self.folder, self.signature = folder, signature
        self._stem = f".answers-{signature[:16]}"

    def are_complete(self) -> bool:
        """Returns whether answers.jsonl is there, with these settings."""
        try:
            settings = json.loads((self.folder / SETTINGS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        is_same = isinstance(settings, dict) and settings.get("signature") == self.signature
        return is_same and (self.folder / ANSWERS).is_file()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other processes out of the folder. Raises UsageError if one is there."""
        atomic.create_folder(self.folder)
        try:
            with FileLock(self.folder / ".answers.lock", timeout=0):
                yield
        except Timeout as error:
            raise UsageError(
                f"{self.folder}: another process is writing answers there; wait for it, or set another output="
            ) from error

    def collect(self) -> dict[Key, Answer]:
        """Returns the answers of all processes so far, and writes them to one file; no process may be running."""
        answers = {(answer.prompt, answer.sample): answer for answer in self._read_all()}
        lines = [json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers.values()]
        atomic.write_text(self._collected, "".join(lines))
        for file in self.folder.glob(f"{self._stem}-rank*.jsonl"):
            file.unlink()
        return answers

    def read_collected(self) -> set[Key]:
        """Returns the keys of the answers that `collect` has written."""
        return {(answer.prompt, answer.sample) for answer in _read_answers(self._collected)}

    def get_rank_file(self, rank: int) -> Path:
        """Returns the file to which a process appends its answers."""
        return self.folder / f"{self._stem}-rank{rank}.jsonl"

    def finish(self, prompts: Sequence[Prompt], settings: Mapping[str, Any]) -> None:
        """Writes answers.jsonl and settings.json, and removes the other files, also those of other settings."""
        answers = self.collect()
        write_answers(
            self.folder,
            [_build_record(prompts[answer.prompt], answer) for _, answer in sorted(answers.items())],
        )
        atomic.write_json(self.folder / SETTINGS, {"signature": self.signature, **settings})
        for file in self.folder.glob(".answers-*.jsonl"):
            file.unlink()

    @property
    def _collected(self) -> Path:
        return self.folder / f"{self._stem}.jsonl"

    def _read_all(self) -> Iterator[Answer]:
        for file in (self._collected, *sorted(self.folder.glob(f"{self._stem}-rank*.jsonl"))):
            yield from _read_answers(file)


def write_answers(folder: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes answers.jsonl, and removes settings.json, which describes the answers that are replaced."""
    (folder / SETTINGS).unlink(missing_ok=True)
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    atomic.write_text(folder / ANSWERS, "".join(lines))


def _read_answers(file: Path) -> Iterator[Answer]:
    """Yields the answers in a file; the last line of a process that was killed may be incomplete."""
    if not file.is_file():
        return
    with open(file, "rb") as lines:
        for line in lines:
            try:
                yield Answer(**json.loads(line))
            except (ValueError, TypeError):
                return


def _build_record(prompt: Prompt, answer: Answer) -> dict[str, Any]:
    values = asdict(answer)
    del values["prompt"], values["sample"]
    if answer.scores is None:
        del values["scores"]
    return {"id": prompt.id, **prompt.content, **values}


def encode_prompts(
    prompts: Sequence[Prompt],
    tokenizer: TokenizerFolder,
    template: ChatTemplate | None,
    system: str | None,
    context_length: int,
) -> list[list[int]]:
    """Returns the tokens of each prompt; with a template, of a conversation.

    Raises UsageError for the first prompt that cannot be used.
    """
    if template is None:
        for prompt in prompts:
            if prompt.messages is not None:
                raise UsageError(
                    f"{prompt.location}: messages need a chat template, and the model is used without one; set "
                    "chat=true, or write the texts as prompt"
                )
        encoded = [_encode_text(prompt, tokenizer) for prompt in prompts]
    else:
        encoded = [_encode_messages(prompt, template, system) for prompt in prompts]
    _check_lengths(prompts, encoded, context_length)
    return encoded


def _encode_text(prompt: Prompt, tokenizer: TokenizerFolder) -> list[int]:
    assert prompt.text is not None
    try:
        return encode_prompt(tokenizer, prompt.text)
    except UsageError as error:
        raise UsageError(f"{prompt.location}: {error}") from error


def _encode_messages(prompt: Prompt, template: ChatTemplate, system: str | None) -> list[int]:
    messages = list(prompt.messages or [{"role": "user", "content": prompt.text}])
    if system is not None and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    try:
        return template.encode(messages)
    except UsageError as error:
        raise UsageError(f"{prompt.location}: {error}") from error


def _check_lengths(prompts: Sequence[Prompt], encoded: Sequence[list[int]], context_length: int) -> None:
    long = [(prompt, ids) for prompt, ids in zip(prompts, encoded, strict=True) if len(ids) >= context_length]
    if long:
        prompt, ids = long[0]
        others = f" ({len(long)} such prompts)" if len(long) > 1 else ""
        raise UsageError(
            f"{prompt.location}: the prompt has {len(ids)} tokens, and fills the context of the model, which has "
            f"{context_length}{others}; shorten it"
        )


@dataclass(frozen=True)
class BatchPlan:
    """The work that the processes of a batch share, as values for JSON."""

    encoded: list[list[int]]
    """Tokens of each prompt."""
    samples: int
    """Number of answers to each."""
    params: dict[str, Any]
    """Sampling parameters of the first answer."""
    end_ids: list[int]
    """Tokens that end an answer besides eos."""
    top_logprobs: int | None
    """Number of alternatives with which each token is scored; None: no scores."""

    @property
    def keys(self) -> list[Key]:
        """All answers, in order."""
        return [(prompt, sample) for prompt in range(len(self.encoded)) for sample in range(self.samples)]


def answer_prompts(
    loaded: LoadedModel,
    plan: BatchPlan,
    files: AnswerFiles,
    rank: int,
    world_size: int,
    batch_size: int,
    report: Callable[[Answer], None],
    format_score: Callable[[TokenScore], dict[str, Any]],
) -> None:
    """Generates this rank's share of the answers that are missing, the longest prompts first.

    Each answer is appended to a file when it is complete. Prompts of similar length are generated together, so that
    little of a batch is padding.
    """
    collected = files.read_collected()
    keys = [key for key in plan.keys if key not in collected][rank::world_size]
    params = SamplingParams(**{**plan.params, "stop": tuple(plan.params["stop"])})
    end_ids, encoded = frozenset(plan.end_ids), plan.encoded
    engine = GenerationEngine(loaded.model, loaded.tokenizer, batch_size)
    pending = deque(sorted(keys, key=lambda key: (-len(encoded[key[0]]), key)))
    active: dict[Generation, Key] = {}
    with (
        atomic.name_folder_in_errors(files.folder),
        open(files.get_rank_file(rank), "a", encoding="utf-8") as lines,
    ):
        while pending or engine.is_busy:
            while pending and engine.waiting < batch_size:  # not all: each has a random generator
                key = pending.popleft()
                generation = Generation(
                    encoded[key[0]], params.with_seed(params.seed + key[1]), end_ids, plan.top_logprobs
                )
                engine.add(generation)
                active[generation] = key
            for progress in engine.step():
                generation = progress.generation
                if generation.finish_reason is not None:
                    scores = None if plan.top_logprobs is None else [*map(format_score, generation.scores)]
                    answer = _build_answer(active.pop(generation), generation, scores)
                    lines.write(json.dumps(asdict(answer), ensure_ascii=False) + "\n")
                    lines.flush()
                    report(answer)


def _build_answer(key: Key, generation: Generation, scores: list[dict[str, Any]] | None) -> Answer:
    return Answer(
        prompt=key[0], sample=key[1], answer=generation.text, finish_reason=str(generation.finish_reason),
        prompt_tokens=len(generation.prompt_ids), answer_tokens=len(generation.new_ids),
        seed=generation.params.seed, scores=scores,
    )  # fmt: skip
