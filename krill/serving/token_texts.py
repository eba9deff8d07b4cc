"""Formats scored tokens as OpenAI's API does, with their texts, bytes and offsets."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from krill.inference.token_scores import TokenScore
from krill.inspection.token_display import TokenRenderer
from krill.tokenizer.artifact import TokenizerFolder


@dataclass(frozen=True)
class TextToken:
    """A token of a text."""

    token: int
    score: TokenScore | None
    """None: nothing predicts the token, which is the first one of its text."""
    offset: int
    """Index of the character of the text at which the token begins."""


class TokenTexts:
    """The texts of the tokens of one tokenizer."""

    def __init__(self, tokenizer: TokenizerFolder):
        self._renderer, self._backend = TokenRenderer(tokenizer), tokenizer.backend

    def get_bytes(self, token: int) -> bytes:
        """Returns the bytes of a token, or of the name of a special token."""
        content = self._renderer.get_text_bytes(token)
        return self._get_name(token).encode() if content is None else content

    def get_text_bytes(self, token: int) -> bytes:
        """Returns the bytes that a token adds to a text; empty for a special token."""
        return self._renderer.get_text_bytes(token) or b""

    def _get_name(self, token: int) -> str:
        return str(self._backend.id_to_token(token) or "")

    # --- the shapes of OpenAI's API ---------------------------------------------------------------------------

    def format_completion(self, tokens: Iterable[TextToken]) -> dict[str, Any]:
        """Returns the field logprobs of /v1/completions.

        A token that is part of a character is written as its bytes, `bytes:\\xed\\x95`.
        """
        items = list(tokens)
        return {
            "tokens": [self._format_legacy(item.token) for item in items],
            "token_logprobs": [item.score.logprob if item.score else None for item in items],
            "top_logprobs": [self._format_legacy_top(item.score) if item.score else None for item in items],
            "text_offset": [item.offset for item in items],
        }

    def format_chat(self, tokens: Iterable[TextToken]) -> dict[str, Any]:
        """Returns the field logprobs of /v1/chat/completions."""
        content = [
            {
                **self._format_chat_token(item.score.token, item.score.logprob),
                "top_logprobs": [
                    self._format_chat_token(token, logprob) for token, logprob in item.score.top
                ],
            }
            for item in tokens
            if item.score
        ]
        return {"content": content, "refusal": None}

    def _format_legacy_top(self, score: TokenScore) -> dict[str, float]:
        """Returns the likeliest tokens, and the token itself; of two tokens with one text, the likelier one."""
        top: dict[str, float] = {}
        for token, logprob in (*score.top, (score.token, score.logprob)):
            top.setdefault(self._format_legacy(token), logprob)
        return top

    def _format_legacy(self, token: int) -> str:
        content = self.get_bytes(token)
        try:
            return content.decode()
        except UnicodeDecodeError:
            return "bytes:" + _escape(content)

    def _format_chat_token(self, token: int, logprob: float) -> dict[str, Any]:
        content = self.get_bytes(token)
        try:
            text = content.decode()
        except UnicodeDecodeError:
            text = _escape(content)
        return {"token": text, "logprob": logprob, "bytes": list(content)}


def _escape(content: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in content)


class TokenOffsets:
    """Assigns offsets to the tokens of a text, and holds back the tokens whose text is not final yet."""

    def __init__(self, texts: TokenTexts, offset: int = 0):
        """`offset`: the offset of the first token."""
        self._texts, self._offset = texts, offset
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held: list[TextToken] = []

    def push(self, token: int, score: TokenScore | None) -> None:
        """Adds a token."""
        self._held.append(TextToken(token, score, self._offset))
        self._offset += len(self._decoder.decode(self._texts.get_text_bytes(token)))

    def take(self, end: int | None) -> list[TextToken]:
        """Returns the tokens that begin before `end`, the length of the text so far; all that are left for None."""
        final = [item for item in self._held if end is None or item.offset < end]
        self._held = self._held[len(final) :]
        return final
