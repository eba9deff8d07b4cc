"""The elements of a file that is one JSON array, read one after the other in bounded memory."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from krill.errors import UsageError
from krill.sources.formats import BLOCK, BOM, Unreadable, blocks

_INVALID = re.compile("[\udc80-\udcff]")
"""What invalid UTF-8 becomes under "surrogateescape"."""
_VISIBLE = re.compile(r"[^ \t\r\n]")
_TOKEN = 16
"""Characters: an error so near to the end of what was read may be a token that goes on."""


def array_records(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (number from 1, element). Raises UsageError, with the line, where the array is broken."""
    array = _Array(path)
    assert array.letter() == "["
    array.at += 1
    number = 0
    while array.letter() != "]":
        number += 1
        yield number, array.element()
        if array.letter() == ",":
            array.at += 1
        elif array.letter() != "]":
            raise array.broken("',' or ']' expected")
    array.at += 1
    if array.letter():
        raise array.broken("text after the array")


class _Array:
    """The text of the file around a position."""

    def __init__(self, path: Path) -> None:
        self.at = 0
        """Index in `_text`."""
        self._path = path
        self._text = ""
        self._line = 1
        """Number of the line with which `_text` begins."""
        self._blocks = blocks(path)
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._read_element = json.JSONDecoder().raw_decode
        self._more()
        self._text = self._text.removeprefix(BOM.decode())

    def letter(self) -> str:
        """Move to the next character that is no white space, and return it; "" at the end."""
        while (found := _VISIBLE.search(self._text, self.at)) is None:
            self.at = len(self._text)
            if not self._more():
                return ""
        self.at = found.start()
        return found[0]

    def element(self) -> Any:
        """The element that begins at the position, which moves behind it."""
        while True:
            try:
                element, end = self._read_element(self._text, self.at)
            except json.JSONDecodeError as error:
                goes_on = error.msg.startswith("Unterminated") or error.pos + _TOKEN > len(self._text)
                if not (goes_on and self._more()):
                    raise self.broken(error.msg, error.pos) from error
            except RecursionError as error:
                raise self.broken("nested too deeply") from error
            else:
                # Only what follows tells whether a number ends here.
                if end + _TOKEN < len(self._text) or not self._more():
                    break
        invalid = _INVALID.search(self._text, self.at, end)
        self.at = end
        return Unreadable("invalid UTF-8") if invalid else element

    def broken(self, reason: str, at: int | None = None) -> UsageError:
        line = self._line + self._text.count("\n", 0, self.at if at is None else at)
        return UsageError(
            f"{self._path}:{line}: invalid JSON ({reason}). Mend the array, or write one object a line (.jsonl), "
            "where a bad line costs that line only"
        )

    def _more(self) -> bool:
        """Read on, at least as much as is kept, and drop what lies behind the position; False at the end."""
        pieces, wanted = [self._text[self.at :]], max(BLOCK, len(self._text) - self.at)
        while wanted > 0 and (block := next(self._blocks, b"")):
            wanted -= len(block)
            pieces.append(self._decoder.decode(block))
        if len(pieces) == 1:
            return False
        self._line += self._text.count("\n", 0, self.at)
        self._text, self.at = "".join(pieces), 0
        return True
