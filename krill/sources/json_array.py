"""The elements of a file that is one JSON array, read one after the other in bounded memory."""

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
"""What invalid UTF-8 becomes under "surrogateescape"."""
_NON_WHITESPACE = re.compile(r"[^ \t\r\n]")
_TOKEN_MARGIN = 16
"""Characters: an error so near to the end of what was read may be a token that goes on."""


def iterate_array_elements(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (number from 1, element). Raises UsageError, with the line, where the array is broken."""
    array = _ArrayReader(path)
    assert array.peek_character() == "["
    array.position += 1
    number = 0
    while array.peek_character() != "]":
        number += 1
        yield number, array.read_element()
        if array.peek_character() == ",":
            array.position += 1
        elif array.peek_character() != "]":
            raise array.build_error("',' or ']' expected")
    array.position += 1
    if array.peek_character():
        raise array.build_error("text after the array")


class _ArrayReader:
    """The text of the file around a position."""

    def __init__(self, path: Path) -> None:
        self.position = 0
        """Index in `_text`."""
        self._path = path
        self._text = ""
        self._line = 1
        """Number of the line with which `_text` begins."""
        self._blocks = read_blocks(path)
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._decode_element = json.JSONDecoder().raw_decode
        self._read_more()
        self._text = self._text.removeprefix(BOM.decode())

    def peek_character(self) -> str:
        """Move to the next character that is no white space, and return it; "" at the end."""
        while (found := _NON_WHITESPACE.search(self._text, self.position)) is None:
            self.position = len(self._text)
            if not self._read_more():
                return ""
        self.position = found.start()
        return found[0]

    def read_element(self) -> Any:
        """The element that begins at the position, which moves behind it."""
        while True:
            try:
                element, end = self._decode_element(self._text, self.position)
            except json.JSONDecodeError as error:
                goes_on = error.msg.startswith("Unterminated") or error.pos + _TOKEN_MARGIN > len(self._text)
                if not (goes_on and self._read_more()):
                    raise self.build_error(error.msg, error.pos) from error
            except RecursionError as error:
                raise self.build_error("nested too deeply") from error
            else:
                # Only what follows tells whether a number ends here.
                if end + _TOKEN_MARGIN < len(self._text) or not self._read_more():
                    break
        invalid = _INVALID_UTF8.search(self._text, self.position, end)
        self.position = end
        return UnreadableRecord("invalid UTF-8") if invalid else element

    def build_error(self, reason: str, at: int | None = None) -> UsageError:
        line = self._line + self._text.count("\n", 0, self.position if at is None else at)
        return UsageError(
            f"{self._path}:{line}: invalid JSON ({reason}). Mend the array, or write one object a line (.jsonl), "
            "where a bad line costs that line only"
        )

    def _read_more(self) -> bool:
        """Read on, at least as much as is kept, and drop what lies behind the position; False at the end."""
        pieces, wanted = [self._text[self.position :]], max(READ_BLOCK_BYTES, len(self._text) - self.position)
        while wanted > 0 and (block := next(self._blocks, b"")):
            wanted -= len(block)
            pieces.append(self._decoder.decode(block))
        if len(pieces) == 1:
            return False
        self._line += self._text.count("\n", 0, self.position)
        self._text, self.position = "".join(pieces), 0
        return True
