"""Renders token ids as readable spans: words, other characters, special tokens, and undecodable bytes.

One character can be several tokens, as most Hangul syllables in a byte-level BPE with a small vocabulary. Such tokens
cannot be decoded alone, so they are joined until they form whole characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from krill.terminal import escape_control_characters
from krill.tokenizer.artifact import TokenizerFolder
from krill.tokenizer.recipe import bytes_to_unicode

SpanKind = Literal["special", "word", "other", "undecodable"]

_WORD_PATTERN = re.compile(r"\w")
_BYTE_TOKEN_PATTERN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenSpan(NamedTuple):
    """Consecutive tokens that are displayed together."""

    kind: SpanKind
    text: str
    """The name of a special token; undecodable bytes as \\xe3; otherwise the text."""
    ids: tuple[int, ...]


class TokenRenderer:
    """Converts the ids of one tokenizer to text for display."""

    def __init__(self, tokenizer: TokenizerFolder) -> None:
        self._backend = tokenizer.backend
        self._added_tokens = {
            token: added.content for token, added in self._backend.get_added_tokens_decoder().items()
        }
        roles = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}
        flagged = {
            token for token, added in self._backend.get_added_tokens_decoder().items() if added.special
        }
        self._special_ids = roles | flagged
        decoder = str(self._backend.decoder)
        self._is_byte_level = "ByteLevel" in decoder
        self._has_space_marker = "▁" in decoder

    def render(self, ids: Sequence[int]) -> list[TokenSpan]:
        """Returns the spans of consecutive tokens of one document, in order; they have every id once.

        Consecutive tokens without a letter or digit are one span, and so are consecutive undecodable tokens.
        """
        spans: list[TokenSpan] = []
        for span in self.iterate_spans(ids):
            if spans and span.kind == spans[-1].kind and span.kind in ("other", "undecodable"):
                spans[-1] = TokenSpan(span.kind, spans[-1].text + span.text, spans[-1].ids + span.ids)
            else:
                spans.append(span)
        return spans

    def iterate_spans(self, ids: Sequence[int]) -> Iterator[TokenSpan]:
        """Yields spans as short as possible: a token, or the tokens that are whole characters only together."""
        contents = [*map(self.get_text_bytes, ids)]
        start = 0
        while start < len(ids):
            stop, kind, text = self._read_span(ids, contents, start)
            yield TokenSpan(kind, text, tuple(ids[start:stop]))
            start = stop

    def render_token(self, token: int) -> str:
        """Returns a single token as text on one line."""
        (span,) = self.render([token])
        return escape_unprintable(span.text)

    def label_token(self, token: int) -> str:
        """Returns a single token as a label: text in quotes, a special token and bytes in ⟨ ⟩, else ⟨its id⟩."""
        (span,) = self.iterate_spans([token])
        text = escape_unprintable(span.text)
        return f'"{text}"' if text and span.kind in ("word", "other") else f"⟨{text or token}⟩"

    def get_text_bytes(self, token: int) -> bytes | None:
        """Returns the bytes of text of a token, empty if the id has no entry; None for a special token."""
        return None if token in self._special_ids else self._decode_entry(token)

    def _read_span(
        self, ids: Sequence[int], contents: list[bytes | None], start: int
    ) -> tuple[int, SpanKind, str]:
        """Returns the end, the kind and the text of the span that begins at `start`."""
        first = contents[start]
        if first is None:
            return start + 1, "special", self._get_special_name(ids[start])
        content = b""
        for stop in range(start, len(ids)):
            token_bytes = contents[stop]
            if token_bytes is None:
                break
            content += token_bytes
            try:
                text = content.decode()
            except UnicodeDecodeError as error:
                if error.reason != "unexpected end of data":
                    break
            else:
                return stop + 1, "word" if _WORD_PATTERN.search(text) else "other", text
        return start + 1, "undecodable", first.decode(errors="backslashreplace")

    def _decode_entry(self, token: int) -> bytes:
        """Returns the bytes of the text of `token`."""
        entry = self._added_tokens.get(token)
        if entry is not None:
            return entry.encode()
        entry = self._backend.id_to_token(token) or ""
        if self._is_byte_level and _LETTER_TO_BYTE.keys() >= set(entry):
            return bytes(_LETTER_TO_BYTE[letter] for letter in entry)
        if byte := _BYTE_TOKEN_PATTERN.fullmatch(entry):
            return bytes([int(byte[1], 16)])
        return (entry.replace("▁", " ") if self._has_space_marker else entry).encode()

    def _get_special_name(self, token: int) -> str:
        """Returns the name of a special token: eos for <|eos|>."""
        content = self._added_tokens.get(token) or self._backend.id_to_token(token) or str(token)
        return content.strip("<|>[]") or content


def escape_unprintable(text: str) -> str:
    """Returns `text` on one line and safe for a terminal: unprintable characters are escaped, line ends become ↵."""
    return escape_control_characters(text.replace("\n", "↵"))


_LETTER_TO_BYTE = {letter: byte for byte, letter in enumerate(bytes_to_unicode())}
