"""Turns a request into generations, and what they generate into responses in the shapes of OpenAI's API.

A call is made from the validated body of a request. Its pieces are turned into the chunks of a stream, or collected
into one response.
"""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from krill.config.schema import LimitsConfig
from krill.errors import UsageError
from krill.inference.conversation import ChatTemplate
from krill.inference.defaults import NEUTRAL, resolve_params
from krill.inference.engine import FinishReason, Generation
from krill.inference.generate import encode_prompt
from krill.inference.load import LoadedModel
from krill.serving.errors import ApiError
from krill.serving.requests import ChatRequest, CompletionRequest, TextOrIds, check_limits
from krill.serving.token_texts import TextToken, TokenOffsets, TokenTexts
from krill.serving.worker import Piece

COMPLETION_TOKENS = 16
"""Default of max_tokens for completions, as OpenAI's. An answer in a chat may fill the context."""

_FINISH_REASONS: dict[FinishReason, str] = {
    "eos": "stop", "stop": "stop", "length": "length", "context": "length",
}  # fmt: skip


class ServedModel:
    """A loaded model under the name that requests use, and what turns requests into calls."""

    def __init__(self, loaded: LoadedModel, name: str, limits: LimitsConfig):
        self.name, self.limits = name, limits
        self.created = int(time.time())
        self.loaded, self.tokenizer = loaded, loaded.tokenizer
        self.texts = TokenTexts(loaded.tokenizer)
        self.template = ChatTemplate.load(loaded.tokenizer.folder)
        self.context_length: int = loaded.model.config.max_position_embeddings

    def describe(self) -> dict[str, Any]:
        """Returns the entry of /v1/models; its key `krill` is an addition to OpenAI's."""
        defaults = resolve_params({}, self.loaded.defaults, NEUTRAL)
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "krill",
            "krill": {
                "context_length": self.context_length,
                "has_chat_template": self.template is not None,
                "limits": self.limits.model_dump(),
                "defaults": {
                    key: getattr(defaults, key)
                    for key in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
                },
            },
        }

    def build_completion(self, request: CompletionRequest) -> CompletionCall:
        """Returns the call of a request to /v1/completions. Raises ApiError if it cannot be answered."""
        self._check(request)
        prompts = [self._encode(prompt) for prompt in request.prompt]
        generations = self._build_generations(
            request, prompts, COMPLETION_TOKENS, request.logprobs, score_prompt=bool(request.echo)
        )
        return CompletionCall(self, "cmpl", len(prompts), generations, request)

    def build_chat(self, request: ChatRequest) -> ChatCall:
        """Returns the call of a request to /v1/chat/completions. Raises ApiError if it cannot be answered."""
        if self.template is None:
            raise ApiError(
                400,
                f"the model {self.name} has no chat template: use /v1/completions, or serve a model that was trained "
                "on conversations",
                "messages",
                "no_chat_template",
            )
        self._check(request)
        messages = [
            {"role": "system" if message.role == "developer" else message.role, "content": message.text}
            for message in request.messages
        ]
        try:
            ids = self.template.encode(messages)
        except UsageError as error:
            raise ApiError(400, str(error), "messages") from error
        generations = self._build_generations(
            request, [ids], self.limits.new_tokens, request.num_logprobs, end_ids=self.template.end_ids
        )
        return ChatCall(self, "chatcmpl", 1, generations, request)

    def _check(self, request: CompletionRequest | ChatRequest) -> None:
        if request.model is not None and request.model != self.name:
            raise ApiError(
                404, f"no model {request.model!r} here; use {self.name!r}", "model", "model_not_found"
            )
        check_limits(request, self.limits)

    def _encode(self, prompt: TextOrIds) -> list[int]:
        if isinstance(prompt, str):
            try:
                return encode_prompt(self.tokenizer, prompt)
            except UsageError as error:
                raise ApiError(400, str(error), "prompt") from error
        vocab_size = self.loaded.model.config.vocab_size
        if wrong := next((token for token in prompt if not 0 <= token < vocab_size), None):
            raise ApiError(400, f"token id {wrong}: the model has the ids 0 to {vocab_size - 1}", "prompt")
        return prompt

    def _build_generations(
        self,
        request: CompletionRequest | ChatRequest,
        prompts: Sequence[list[int]],
        default_tokens: int,
        num_logprobs: int | None,
        score_prompt: bool = False,
        end_ids: frozenset[int] = frozenset(),
    ) -> list[Generation]:
        """Returns n generations for each prompt, each with a seed of its own."""
        for ids in prompts:
            if len(ids) + (request.new_tokens != 0) > self.context_length:
                raise ApiError(
                    400,
                    f"the prompt has {len(ids)} tokens, but the context of the model has {self.context_length}, the "
                    "answer included; shorten it",
                    "messages" if isinstance(request, ChatRequest) else "prompt",
                    "context_length_exceeded",
                )
        given = request.sampling | {"max_new_tokens": request.new_tokens}
        params = resolve_params(given, self.loaded.defaults, replace(NEUTRAL, max_new_tokens=default_tokens))
        if params.max_new_tokens > self.limits.new_tokens:  # by the model's generation_config
            params = replace(params, max_new_tokens=self.limits.new_tokens)
        seed = secrets.randbits(62) if request.seed is None else request.seed
        return [
            Generation(
                ids,
                params.with_seed((seed + number) % 2**63),
                top_logprobs=num_logprobs,
                score_prompt=score_prompt and num_logprobs is not None,
                end_ids=end_ids,
            )
            for ids in prompts
            for number in range(request.num_answers)
        ]


@dataclass
class _Answer:
    """One choice of a response as far as it is generated."""

    generation: Generation
    offsets: TokenOffsets
    echo: str = ""
    """The prompt, if the response repeats it."""
    has_added_bos: bool = False
    """Whether krill put bos before the prompt."""
    is_begun: bool = False
    text: str = ""
    tokens: list[TextToken] = field(default_factory=list)
    num_echoed: int = 0
    """Number of tokens of the prompt in `tokens`, which begins with them."""
    finish_reason: str | None = None


@dataclass(frozen=True)
class Delta:
    """The text that a piece made final, and the tokens that belong to it."""

    index: int
    is_first: bool
    text: str
    tokens: list[TextToken]
    is_last: bool


class Call(ABC):
    """The answers to one request, in the shape of one of OpenAI's end points."""

    response_object = chunk_object = ""

    def __init__(
        self,
        served: ServedModel,
        prefix: str,
        num_prompts: int,
        generations: list[Generation],
        request: CompletionRequest | ChatRequest,
    ):
        self.generations = generations
        self.id = f"{prefix}-{secrets.token_hex(12)}"
        self._served, self._num_prompts = served, num_prompts
        self._created = int(time.time())
        options = request.stream_options
        self._has_usage_chunk = bool(options and options.include_usage)
        self._answers = [self._begin_answer(request, index) for index in range(len(generations))]

    def add(self, piece: Piece) -> Delta:
        """Adds a piece to its answer; returns what is final now."""
        answer = self._answers[piece.index]
        is_first, answer.is_begun = not answer.is_begun, True
        if is_first:
            answer.tokens = self._list_echoed(answer)
            answer.num_echoed = len(answer.tokens)
        if piece.finish_reason:
            answer.finish_reason = _FINISH_REASONS[piece.finish_reason]
        answer.text += piece.text
        for score in piece.scores:
            answer.offsets.push(score.token, score)
        has_rest = piece.finish_reason is not None and piece.finish_reason != "stop"
        tokens = answer.offsets.take(None if has_rest else len(answer.echo) + len(answer.text))
        answer.tokens += tokens
        return Delta(piece.index, is_first, piece.text, tokens, piece.finish_reason is not None)

    def build_chunks(self, delta: Delta) -> list[dict[str, Any]]:
        """Returns the chunks of a stream for what was added to an answer, often none."""
        answer = self._answers[delta.index]
        choices = self._build_first_choices(answer) if delta.is_first else []
        if delta.text or delta.tokens or delta.is_last:
            choices.append(self._format_delta(answer, delta.text, delta.tokens))
        if delta.is_last:
            choices[-1]["finish_reason"] = answer.finish_reason
        return [
            self._envelop(self.chunk_object, [{"index": delta.index, "finish_reason": None, **choice}])
            for choice in choices
        ]

    def end_stream(self) -> list[dict[str, Any]]:
        """Returns the chunks after the last piece."""
        return [self._envelop(self.chunk_object, []) | {"usage": self.usage}] if self._has_usage_chunk else []

    def build_response(self) -> dict[str, Any]:
        """Returns the response, once every answer has ended."""
        choices = [
            {"index": index, **self._format_choice(answer), "finish_reason": answer.finish_reason}
            for index, answer in enumerate(self._answers)
        ]
        return self._envelop(self.response_object, choices) | {"usage": self.usage}

    @property
    def usage(self) -> dict[str, int]:
        """The number of tokens of the prompts, each counted once, and of the answers."""
        step = len(self.generations) // self._num_prompts
        prompt = sum(len(generation.prompt_ids) for generation in self.generations[::step])
        new = sum(len(generation.new_ids) for generation in self.generations)
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}

    def _envelop(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id, "object": kind, "created": self._created, "model": self._served.name, "choices": choices,
        }  # fmt: skip

    def _begin_answer(self, request: Any, index: int) -> _Answer:
        return _Answer(self.generations[index], TokenOffsets(self._served.texts))

    def _list_echoed(self, answer: _Answer) -> list[TextToken]:
        """Returns the tokens of the prompt, if the response repeats it and is scored."""
        return []

    @abstractmethod
    def _build_first_choices(self, answer: _Answer) -> list[dict[str, Any]]:
        """Returns what a stream sends before the first token of an answer."""

    @abstractmethod
    def _format_delta(self, answer: _Answer, text: str, tokens: list[TextToken]) -> dict[str, Any]:
        """Returns what a stream sends for new text and its tokens."""

    @abstractmethod
    def _format_choice(self, answer: _Answer) -> dict[str, Any]:
        """Returns a whole answer."""


class CompletionCall(Call):
    """A request to /v1/completions."""

    response_object = chunk_object = "text_completion"

    def _begin_answer(self, request: CompletionRequest, index: int) -> _Answer:
        prompt = request.prompt[index // request.num_answers]
        echo = ""
        if request.echo:
            echo = prompt if isinstance(prompt, str) else self._served.tokenizer.decode(prompt)
        offsets = TokenOffsets(self._served.texts, len(echo))
        return _Answer(self.generations[index], offsets, echo, has_added_bos=isinstance(prompt, str))

    def _list_echoed(self, answer: _Answer) -> list[TextToken]:
        """Returns the tokens of the prompt: without the bos that krill added, with one that the client sent."""
        if not answer.generation.score_prompt:
            return []
        offsets = TokenOffsets(self._served.texts)
        if not answer.has_added_bos:
            offsets.push(answer.generation.prompt_ids[0], None)
        for score in answer.generation.prompt_scores:
            offsets.push(score.token, score)
        return offsets.take(None)

    def _build_first_choices(self, answer: _Answer) -> list[dict[str, Any]]:
        echoed = answer.tokens[: answer.num_echoed]
        return [self._format_delta(answer, answer.echo, echoed)] if answer.echo or echoed else []

    def _format_delta(self, answer: _Answer, text: str, tokens: Iterable[TextToken]) -> dict[str, Any]:
        is_scored = answer.generation.top_logprobs is not None
        return {
            "text": text,
            "logprobs": self._served.texts.format_completion(tokens) if is_scored else None,
        }

    def _format_choice(self, answer: _Answer) -> dict[str, Any]:
        return self._format_delta(answer, answer.echo + answer.text, answer.tokens)


class ChatCall(Call):
    """A request to /v1/chat/completions."""

    response_object, chunk_object = "chat.completion", "chat.completion.chunk"

    def _build_first_choices(self, answer: _Answer) -> list[dict[str, Any]]:
        return [{"delta": {"role": "assistant", "content": ""}, "logprobs": None}]

    def _format_delta(self, answer: _Answer, text: str, tokens: list[TextToken]) -> dict[str, Any]:
        return {"delta": {"content": text} if text else {}, "logprobs": self._format_logprobs(answer, tokens)}

    def _format_choice(self, answer: _Answer) -> dict[str, Any]:
        return {
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": self._format_logprobs(answer, answer.tokens),
        }

    def _format_logprobs(self, answer: _Answer, tokens: list[TextToken]) -> dict[str, Any] | None:
        """Returns the scores of tokens; eos, which the answer ends with, is not among them."""
        if answer.generation.top_logprobs is None:
            return None
        eos = answer.generation.eos_score
        return self._served.texts.format_chat(item for item in tokens if item.score is not eos)
