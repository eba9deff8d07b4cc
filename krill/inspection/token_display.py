"""Token ids as a person reads them: words, other signs, special tokens, and what is no character by itself.

One character can be several tokens: most Hangul syllables of a byte-level BPE with a small vocabulary are. None
of them can be decoded alone, so such tokens are joined until whole characters come out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from krill.tokenizer.artifact import TokenizerFolder
from krill.tokenizer.recipe import bytes_to_unicode

SpanKind = Literal["special", "word", "other", "undecodable"]

_WORD_PATTERN = re.compile(r"\w")
_BYTE_TOKEN_PATTERN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenSpan(NamedTuple):
    """Tokens that are shown as one."""

    kind: SpanKind
    text: str
    """Of a special token its name; of what is undecodable its bytes as \\xe3."""
    ids: tuple[int, ...]


class TokenRenderer:
    """Spells the ids of one tokenizer."""

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
        """The pieces of a stretch of ONE document, in order; together they hold every id once.

        A run of tokens without a letter or digit is one piece, and so is a run that decodes to nothing.
        """
        contents = [*map(self.get_text_bytes, ids)]
        found: list[TokenSpan] = []
        start = 0
        while start < len(ids):
            stop, kind, text = self._read_span(ids, contents, start)
            piece = TokenSpan(kind, text, tuple(ids[start:stop]))
            if found and kind == found[-1].kind and kind in ("other", "undecodable"):
                found[-1] = TokenSpan(kind, found[-1].text + text, found[-1].ids + piece.ids)
            else:
                found.append(piece)
            start = stop
        return found

    def render_token(self, token: int) -> str:
        """One token by itself, on one line."""
        (piece,) = self.render([token])
        return escape_unprintable(piece.text)

    def get_text_bytes(self, token: int) -> bytes | None:
        """The bytes of text that one token stands for, none where the id has no entry; None: it is special."""
        return None if token in self._special_ids else self._decode_entry(token)

    def _read_span(
        self, ids: Sequence[int], contents: list[bytes | None], start: int
    ) -> tuple[int, SpanKind, str]:
        """Where the piece that begins at `start` ends, what it is, and its text."""
        first = contents[start]
        if first is None:
            return start + 1, "special", self._get_special_name(ids[start])
        content = b""
        for stop in range(start, len(ids)):
            more = contents[stop]
            if more is None:
                break
            content += more
            try:
                text = content.decode()
            except UnicodeDecodeError as error:
                if error.reason != "unexpected end of data":
                    break
            else:
                return stop + 1, "word" if _WORD_PATTERN.search(text) else "other", text
        return start + 1, "undecodable", first.decode(errors="backslashreplace")

    def _decode_entry(self, token: int) -> bytes:
        """The bytes of the text that `token` stands for."""
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
        """<|eos|> → eos."""
        content = self._added_tokens.get(token) or self._backend.id_to_token(token) or str(token)
        return content.strip("<|>[]") or content


def escape_unprintable(text: str) -> str:
    """`text` on one line and harmless to a terminal: what cannot be printed is escaped, a line's end is ↵."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text.replace("\n", "↵")
    )


_LETTER_TO_BYTE = {letter: byte for byte, letter in enumerate(bytes_to_unicode())}
