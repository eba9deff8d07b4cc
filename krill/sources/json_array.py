"""Iterates over the elements of a file that is one JSON array, in bounded memory.

ijson is not used: it stops at invalid UTF-8, NaN and lone surrogates, which cost at most one record here, and its
memory grows with the square of the nesting depth.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from krill.errors import UsageError
from krill.sources.formats import BOM, READ_BLOCK_BYTES, UnreadableRecord, read_blocks

_INVALID_UTF8 = re.compile("[\udc80-\udcff]")
"""The characters to which "surrogateescape" decodes invalid UTF-8."""
_NON_WHITESPACE = re.compile(r"[^ \t\r\n]")
_TOKEN_MARGIN = 16
"""An error within this many characters of the end of the buffer may be an incomplete token."""


def iterate_array_elements(path: Path) -> Iterator[tuple[int, Any]]:
    """Yields (number from 1, element). Raises UsageError with the line where the array is malformed."""
    reader = _ArrayReader(path)
    assert reader.peek_character() == "["
    reader.position += 1
    number = 0
    while reader.peek_character() != "]":
        number += 1
        yield number, reader.read_element()
        if reader.peek_character() == ",":
            reader.position += 1
        elif reader.peek_character() != "]":
            raise reader.build_error("',' or ']' expected")
    reader.position += 1
    if reader.peek_character():
        raise reader.build_error("text after the array")


class _ArrayReader:
    """A buffer of the file's text around a position."""

    def __init__(self, path: Path) -> None:
        self.position = 0
        """Index of the next character in `_text`."""
        self._path = path
        self._text = ""
        self._line = 1
        """Line number of the beginning of `_text`."""
        self._blocks = read_blocks(path)
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._decode_element = json.JSONDecoder().raw_decode
        self._read_more()
        self._text = self._text.removeprefix(BOM.decode())

    def peek_character(self) -> str:
        """Moves to the next non-whitespace character and returns it; "" at the end."""
        while (match := _NON_WHITESPACE.search(self._text, self.position)) is None:
            self.position = len(self._text)
            if not self._read_more():
                return ""
        self.position = match.start()
        return match[0]

    def read_element(self) -> Any:
        """Returns the element at the position and moves past it."""
        while True:
            try:
                element, end = self._decode_element(self._text, self.position)
            except json.JSONDecodeError as error:
                is_incomplete = error.msg.startswith("Unterminated") or error.pos + _TOKEN_MARGIN > len(
                    self._text
                )
                if not (is_incomplete and self._read_more()):
                    raise self.build_error(error.msg, error.pos) from error
            except RecursionError as error:
                raise self.build_error("nested too deeply") from error
            else:
                # A number ends only where the next character is known.
                if end + _TOKEN_MARGIN < len(self._text) or not self._read_more():
                    break
        invalid = _INVALID_UTF8.search(self._text, self.position, end)
        self.position = end
        return UnreadableRecord("invalid UTF-8") if invalid else element

    def build_error(self, reason: str, position: int | None = None) -> UsageError:
        """Returns the error for malformed JSON at `position` in `_text` (default: the current position)."""
        line = self._line + self._text.count("\n", 0, self.position if position is None else position)
        return UsageError(
            f"{self._path}:{line}: invalid JSON ({reason}). Fix the array, or write one object per line (.jsonl), "
            "where a bad line costs only that line"
        )

    def _read_more(self) -> bool:
        """Appends at least as much text as the buffer keeps and drops the text before the position.

        Returns False at the end of the file.
        """
        pieces = [self._text[self.position :]]
        remaining = max(READ_BLOCK_BYTES, len(self._text) - self.position)
        while remaining > 0 and (block := next(self._blocks, b"")):
            remaining -= len(block)
            pieces.append(self._decoder.decode(block))
        if len(pieces) == 1:
            return False
        self._line += self._text.count("\n", 0, self.position)
        self._text, self.position = "".join(pieces), 0
        return True
