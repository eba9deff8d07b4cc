"""Iterates over JSON values that are not one per line: the elements of an array, or values of several lines.

Memory is bounded by the longest value.

ijson is not used: it stops at invalid UTF-8, NaN and lone surrogates, which cost at most one record here, and its
memory grows with the square of the nesting depth.
"""

from __future__ import annotations

import codecs
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from krill.errors import UsageError
from krill.sources.formats import BOM, READ_BLOCK_BYTES, TOO_LONG, UnreadableRecord, is_longer, read_blocks

_INVALID_UTF8 = re.compile("[\udc80-\udcff]")
"""The characters to which "surrogateescape" decodes invalid UTF-8."""
_NON_WHITESPACE = re.compile(r"[^ \t\r\n\ufeff]")  # a BOM is where files were joined
_TOKEN_MARGIN = 16
"""An error within this many characters of the end of the buffer may be an incomplete token."""


def iterate_array_elements(path: Path, max_bytes: int = sys.maxsize) -> Iterator[tuple[int, Any]]:
    """Yields (number from 1, element) of a file that is one array.

    An element longer than `max_bytes` is `TOO_LONG`. Raises UsageError with the line where the array is malformed, or
    where an element begins that is too long to find its end.
    """
    reader = _ValueReader(path, max_bytes)
    assert reader.peek_character() == "["
    reader.position += 1
    number = 0
    while reader.peek_character() != "]":
        number += 1
        yield number, reader.read_value()
        if reader.peek_character() == ",":
            reader.position += 1
        elif reader.peek_character() != "]":
            raise reader.build_error("',' or ']' expected")
    reader.position += 1
    if reader.peek_character():
        raise reader.build_error("text after the array")


def iterate_values(path: Path, max_bytes: int = sys.maxsize) -> Iterator[tuple[int, Any]]:
    """Yields (number from 1, value) of values that follow each other; see `iterate_array_elements`."""
    reader = _ValueReader(path, max_bytes)
    number = 0
    while reader.peek_character():
        number += 1
        yield number, reader.read_value()


def is_incomplete(error: json.JSONDecodeError, margin: int = _TOKEN_MARGIN) -> bool:
    """Returns whether more text could mend the error: it is within `margin` characters of the end."""
    return error.msg.startswith("Unterminated") or error.pos + margin > len(error.doc)


class _ValueReader:
    """A buffer of the file's text around a position."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.position = 0
        """Index of the next character in `_text`."""
        self._path, self._max_bytes = path, max_bytes
        self._text = ""
        self._line = 1
        """Line number of the beginning of `_text`."""
        self._blocks = read_blocks(path)
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._decode_value = json.JSONDecoder().raw_decode
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

    def read_value(self) -> Any:
        """Returns the value at the position and moves past it."""
        while True:
            try:
                value, end = self._decode_value(self._text, self.position)
            except json.JSONDecodeError as error:
                buffered = len(self._text) - self.position
                if is_incomplete(error) and buffered > max(READ_BLOCK_BYTES, self._max_bytes):
                    raise UsageError(
                        f"{self._path}:{self._get_line(self.position)}: a record {TOO_LONG.reason}="
                        f"{self._max_bytes}; remove it, or set a higher limit"
                    ) from None
                if not (is_incomplete(error) and self._read_more()):
                    raise self.build_error(error.msg, error.pos) from error
            except RecursionError as error:
                raise self.build_error("nested too deeply") from error
            else:
                # A number ends only where the next character is known.
                if end + _TOKEN_MARGIN < len(self._text) or not self._read_more():
                    break
        start, self.position = self.position, end
        if 4 * (end - start) > self._max_bytes and is_longer(self._text[start:end], self._max_bytes):
            return TOO_LONG
        invalid = _INVALID_UTF8.search(self._text, start, end)
        return UnreadableRecord("invalid UTF-8") if invalid else value

    def build_error(self, reason: str, position: int | None = None) -> UsageError:
        """Returns the error for malformed JSON at `position` in `_text` (default: the current position)."""
        line = self._get_line(self.position if position is None else position)
        return UsageError(
            f"{self._path}:{line}: invalid JSON ({reason}). Fix it, or write one object per line (.jsonl), "
            "where a bad line costs only that line"
        )

    def _get_line(self, position: int) -> int:
        return self._line + self._text.count("\n", 0, position)

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
