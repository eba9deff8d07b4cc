"""Answers one prompt after the other on standard output: a prompt of the command line, of a pipe, or of a session."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from krill.inference.conversation import Conversation
from krill.inference.defaults import resolve_params
from krill.inference.engine import Generation, GenerationEngine
from krill.inference.generate import encode_prompt, stream_answers
from krill.inference.load import LoadedModel
from krill.inference.sampling import SamplingParams
from krill.terminal import escape_terminal_codes

DIM, PLAIN = "\x1b[2m", "\x1b[0m"


@dataclass
class Answerer:
    """A model with the settings of its next answer, and the answers so far."""

    loaded: LoadedModel
    settings: dict[str, Any]
    """Sampling parameters, None for those of the model or krill's default; and n, the number of answers."""
    conversation: Conversation | None
    """The turns so far; None: every prompt is a text of its own, which the model continues."""
    write: Callable[[str], None]
    """Writes a message to the user."""
    inspect: Callable[[str, Generation], None] = lambda prompt, generation: None
    """Shows what the model expected at each token of an answer to a prompt."""
    top_logprobs: int | None = None
    """Number of alternatives with which every answer is scored and shown; None: answers are scored on request."""
    is_interactive: bool = False
    """Whether Ctrl-C ends an answer and not the command, and the speed is shown after each answer."""
    answers: list[dict[str, Any]] = field(default_factory=list)
    """The records of the answers so far, as in answers.jsonl."""
    last: Generation | None = None
    """The last answer."""

    @property
    def params(self) -> SamplingParams:
        """The parameters of the next answer."""
        settings = {key: value for key, value in self.settings.items() if key != "n"}
        return resolve_params({**settings, "stop": tuple(settings["stop"])}, self.loaded.defaults)

    def answer(self, prompt: str) -> None:
        """Streams the answers to `prompt` to standard output. Raises UsageError for a prompt that cannot be used."""
        params = self.params
        ids, end_ids = self._encode(prompt, params.max_new_tokens)
        seeds = range(params.seed, params.seed + self.settings["n"])
        generations = [Generation(ids, params.with_seed(seed), end_ids, self.top_logprobs) for seed in seeds]
        self._stream(generations)
        self.last = generations[-1]
        number = self.answers[-1]["id"] + 1 if self.answers else 1
        self.answers += [_build_record(number, prompt, generation) for generation in generations]
        if self.conversation is not None:
            self.conversation.add_turn(prompt, self.last.text)
        if self.top_logprobs is not None:
            for generation in generations:
                self.inspect(prompt, generation)

    def forget(self) -> None:
        """Forgets the turns of a chat."""
        if self.conversation is not None:
            self.conversation.turns = []

    def _encode(self, prompt: str, max_new_tokens: int) -> tuple[list[int], frozenset[int]]:
        """Returns the tokens of a prompt, or of the conversation that it continues, and those that end an answer."""
        if self.conversation is None:
            return encode_prompt(self.loaded.tokenizer, prompt), frozenset()
        ids, dropped = self.conversation.encode_question(prompt, max_new_tokens)
        if dropped:
            self.write(_dim(f"the context is full: oldest turns dropped: {dropped}"))
        return ids, self.conversation.end_ids

    def _stream(self, generations: list[Generation]) -> None:
        engine = GenerationEngine(self.loaded.model, self.loaded.tokenizer)
        make_safe = escape_terminal_codes if sys.stdout.isatty() else str
        start, first_token, current = time.perf_counter(), None, 0
        try:
            for index, text in stream_answers(engine, generations):
                first_token = first_token or time.perf_counter()
                print("\n" * (index - current) + make_safe(text), end="", flush=True)
                current = index
        except KeyboardInterrupt:
            if not self.is_interactive:
                raise
            for generation in generations:
                engine.cancel(generation)
        print(flush=True)
        if self.is_interactive:
            self.write(_dim(_describe_speed(generations, start, first_token)))


def _describe_speed(generations: list[Generation], start: float, first_token: float | None) -> str:
    end = time.perf_counter()
    tokens = sum(len(generation.new_ids) for generation in generations)
    reasons = ", ".join(str(generation.finish_reason) for generation in generations)
    return (
        f"{tokens / max(end - start, 1e-9):.1f} tokens/s, first token after {(first_token or end) - start:.2f} s, "
        f"{tokens} tokens, {reasons}"
    )


def _build_record(number: int, prompt: str, generation: Generation) -> dict[str, Any]:
    return {
        "id": number, "prompt": prompt, "answer": generation.text, "finish_reason": generation.finish_reason,
        "prompt_tokens": len(generation.prompt_ids), "answer_tokens": len(generation.new_ids),
        "seed": generation.params.seed,
    }  # fmt: skip


def _dim(text: str) -> str:
    """Returns `text` dimmed if standard error is a terminal with colors."""
    return f"{DIM}{text}{PLAIN}" if sys.stderr.isatty() and not os.environ.get("NO_COLOR") else text
