"""Validates the bodies of requests: their fields, their limits, and the parameters that are not supported."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from krill.config.number_limits import MAX_INT
from krill.config.schema import LimitsConfig
from krill.config.schema.infer import RepetitionPenalty, Temperature
from krill.serving.errors import ApiError

MAX_STOP_CHARS = 500
"""Maximum length of a stop text: text is held back while it could be the beginning of one."""

NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none",),
    "functions": ([],),
    "function_call": ("none",),
    "parallel_tool_calls": (False, True),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "store": (False,),
    "metadata": ({},),
    "service_tier": ("auto", "default"),
    "web_search_options": (),
}
"""Parameters of OpenAI's API that krill does not have → the values, besides null, that have no effect."""

_IGNORED = ("user", "safety_identifier", "prompt_cache_key")
"""Parameters that name the user of a client; they change no answer."""

RequestT = TypeVar("RequestT", bound=BaseModel)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class StreamOptions(_Body):
    """Options of a stream."""

    include_usage: bool = False
    include_obfuscation: bool = False


def _to_tuple(value: object) -> object:
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


class _GenerationRequest(_Body):
    """The fields that completions and chats share. The model's defaults replace sampling parameters that are null."""

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=0, le=MAX_INT)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=MAX_INT)] | None = None
    temperature: Temperature | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=MAX_INT)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    repetition_penalty: RepetitionPenalty | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_INT)] | None = None
    best_of: int | None = None
    stop: (
        Annotated[
            tuple[Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)], ...],
            BeforeValidator(_to_tuple),
        ]
        | None
    ) = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def num_answers(self) -> int:
        """Number of answers to each prompt."""
        return self.n or 1

    @property
    def sampling(self) -> dict[str, Any]:
        """The sampling parameters that are set, as `SamplingParams` names them."""
        keys = ("temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "stop")
        return {key: getattr(self, key) for key in keys} | {"min_new_tokens": self.min_tokens}


TextOrIds = str | list[int]


def _read_prompts(value: object) -> object:
    """Returns a list of prompts: texts, or lists of token ids."""
    prompts = value if isinstance(value, list) and not _is_ids(value) else [value]
    if not prompts or not all(isinstance(prompt, str) or _is_ids(prompt) for prompt in prompts):
        raise ValueError("use a text, a list of token ids, or a list of such; none of the lists may be empty")
    return prompts


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


class CompletionRequest(_GenerationRequest):
    """The body of /v1/completions."""

    prompt: Annotated[list[TextOrIds], BeforeValidator(_read_prompts)]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_INT)] | None = None

    @property
    def new_tokens(self) -> int | None:
        """Maximum number of tokens of an answer; None: the default."""
        return self.max_tokens


class TextPart(_Body):
    """A part of the content of a message."""

    type: Literal["text"]
    text: str


class Message(_Body):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None
    refusal: None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(_GenerationRequest):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_INT)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_INT)] | None = None

    @property
    def new_tokens(self) -> int | None:
        """Maximum number of tokens of an answer; None: the default."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives per token; None: no logprobs."""
        return (self.top_logprobs or 0) if self.logprobs else None


def parse_body(schema: type[RequestT], body: bytes) -> RequestT:
    """Returns the request in a JSON body. Raises ApiError that names what is wrong."""
    try:
        values = json.loads(body)
        if rb"\ud" in body.lower():  # half of a surrogate pair cannot be encoded
            json.dumps(values, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {str(error).splitlines()[0]}") from error
    if not isinstance(values, dict):
        raise ApiError(400, "the body is not a JSON object")
    try:
        return schema.model_validate(_drop_neutral(values))
    except ValidationError as error:
        raise _describe(error, schema) from error


def _drop_neutral(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the values without the NEUTRAL_VALUES. Raises ApiError for another value of such a parameter."""
    for key, neutral in NEUTRAL_VALUES.items():
        value = values.get(key)
        if (
            value is not None
            and not any(type(value) is type(item) and value == item for item in neutral)
            and not (type(value) is float and value in neutral)
        ):
            raise ApiError(400, f"{key} is not supported; leave it out", key, "unsupported_parameter")
    return {key: value for key, value in values.items() if key not in NEUTRAL_VALUES and key not in _IGNORED}


def _describe(error: ValidationError, schema: type[BaseModel]) -> ApiError:
    first = error.errors(include_url=False, include_context=False)[0]
    names = [str(part) for part in first["loc"] if isinstance(part, int) or str(part) in _list_fields(schema)]
    param = ".".join(names) or None
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        param = ".".join(map(str, first["loc"]))
        message = "no such parameter"
    return ApiError(400, f"{param}: {message}" if param else message, param)


def _list_fields(schema: type[BaseModel]) -> set[str]:
    kinds = (schema, Message, TextPart, StreamOptions)
    return {name for kind in kinds for name in kind.model_fields}


def check_limits(request: CompletionRequest | ChatRequest, limits: LimitsConfig) -> None:
    """Raises ApiError if a request exceeds one of the limits."""
    values: list[tuple[str, float | None, float]] = [
        ("max_tokens", request.new_tokens, limits.new_tokens),
        ("min_tokens", request.min_tokens, limits.new_tokens),
        ("temperature", request.temperature, limits.temperature),
        ("top_k", request.top_k, limits.top_k),
    ]
    num_prompts = 1
    if isinstance(request, CompletionRequest):
        texts = [prompt for prompt in request.prompt if isinstance(prompt, str)]
        values += [("logprobs", request.logprobs, limits.logprobs)]
        values += [("characters of prompt", len(text), limits.prompt_chars) for text in texts]
        num_prompts = len(request.prompt)
    else:
        lengths = [len(message.text) for message in request.messages]
        values += [
            ("top_logprobs", request.top_logprobs, limits.logprobs),
            ("number of messages", len(lengths), limits.messages),
            ("characters of a message", max(lengths), limits.message_chars),
            ("characters of all messages", sum(lengths), limits.prompt_chars),
        ]
        if request.top_logprobs is not None and not request.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs=true", "top_logprobs")
    values += [
        ("number of stop texts", len(request.stop or ()), limits.stop),
        ("number of prompts times n", num_prompts * request.num_answers, limits.sequences),
    ]
    _raise_if_exceeded(values)
    if request.best_of is not None and request.best_of != request.num_answers:
        raise ApiError(400, "best_of is not supported; leave it out", "best_of", "unsupported_parameter")
    if request.stream_options is not None and not request.stream:
        raise ApiError(400, "stream_options needs stream=true", "stream_options")


def _raise_if_exceeded(values: Sequence[tuple[str, float | None, float]]) -> None:
    for name, value, limit in values:
        if value is not None and value > limit:
            param = name if " " not in name else None
            raise ApiError(
                400, f"{name} is {value:.10g}; at most {limit:.10g} are allowed", param, "limit_exceeded"
            )
