"""The configuration of krill-serve."""

from __future__ import annotations

import ipaddress
from typing import Annotated

from pydantic import AfterValidator, Field

from krill.config.schema.base import Count, CountOrZero, Rate, Section, Size, Unsigned
from krill.config.schema.hardware import HardwareConfig
from krill.config.schema.infer import ModelCommandConfig


def is_loopback(host: str) -> bool:
    """Returns whether only this machine reaches the address `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def validate_api_key(value: str) -> str:
    """Returns `value`. Raises ValueError if HTTP cannot carry it in a header."""
    if not value or not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("is not a key that HTTP can carry; use printable ASCII characters without spaces")
    return value


class LimitsConfig(Section):
    """The largest request; one that exceeds a limit is answered with an error that names it."""

    messages: Size
    """Number of messages of a conversation."""
    message_chars: Count
    """Characters of one message."""
    prompt_chars: Count
    """Characters of a prompt, or of all messages of a conversation."""
    new_tokens: Size
    """Tokens of an answer, max_tokens."""
    sequences: Size
    """Answers to one request: its prompts times n."""
    temperature: Rate
    """Largest temperature."""
    top_k: Size
    """Largest top_k."""
    logprobs: Size
    """Alternatives per token, logprobs and top_logprobs."""
    stop: Size
    """Stop texts; each has at most 500 characters."""
    body_bytes: Count
    """Bytes of the body of a request."""
    body_seconds: Size
    """Seconds in which the body of a request must arrive."""


class ServerConfig(Section):
    """The server: its address, who may use it, and how much it takes on."""

    host: Annotated[str, Field(min_length=1)]
    """Address that the server listens on: 127.0.0.1 and ::1 are reached from this machine only, 0.0.0.0 from
    everywhere, which needs an API key."""
    port: Annotated[int, Field(ge=0, le=65535)]
    """Port that the server listens on; 0: any free one."""
    api_key: Annotated[str, AfterValidator(validate_api_key)] | None
    """Key that clients send as `Authorization: Bearer KEY`. null: the environment variable KRILL_API_KEY, which is
    safer because it is in no list of processes, or else no key."""
    max_queue: CountOrZero
    """Number of requests that wait until the batch has room for them; further ones are answered with status 429."""
    max_batch_size: Size
    """Number of answers that are generated at once."""
    limits: LimitsConfig


class ServeConfig(ModelCommandConfig):
    """A trained model behind an HTTP API like OpenAI's, with a page in the browser."""

    hardware: Unsigned[HardwareConfig]
    """How the model is computed: hardware.precision and hardware.threads; the other keys have no effect."""
    serve: Unsigned[ServerConfig]
