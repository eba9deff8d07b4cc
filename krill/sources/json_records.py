"""Texts from JSON: an object a line, or one array of objects.

orjson reads the lines; what it refuses and Python's own reader takes (lone surrogates, NaN) is read too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import orjson

from krill.errors import UsageError
from krill.sources.formats import BOM, Unreadable, begins, kind_of, line_blocks
from krill.sources.json_array import array_records
from krill.sources.source import no_column


def json_texts(
    path: Path, column: str, start: int = 0, end: int | None = None
) -> Iterator[tuple[int, str | Unreadable]]:
    """Yield (line within the byte range, or record of an array; text).

    Raises UsageError if the file has no record, or if none in the range with which it begins has the column.
    """
    seen, found = False, start > 0
    columns: dict[str, None] = {}
    for number, record in array_records(path) if is_array(path) else _lines(path, start, end):
        seen = True
        if type(record) is dict:
            text = record.get(column)
            if type(text) is str:
                found = True
                yield number, text
                continue
            found = found or column in record
            if not found:
                columns |= dict.fromkeys(record)
        yield number, _why_no_text(record, column)
    if columns and not found:
        raise UsageError(no_column(str(path), column, list(columns)))
    if not seen and start == 0 and (end is None or end == path.stat().st_size):
        raise UsageError(f"{path}: holds no record; write it anew, or leave it out of data.paths")


def is_array(path: Path) -> bool:
    """Whether a file is one JSON array: a .json whose first character opens it."""
    return kind_of(path)[0] == ".json" and begins(path).removeprefix(BOM).lstrip()[:1] == b"["


def _why_no_text(record: Any, column: str) -> Unreadable:
    if isinstance(record, Unreadable):
        return record
    if not isinstance(record, dict):
        return Unreadable("not a JSON object")
    if record.get(column) is None:
        return Unreadable(f"{column!r} is null" if column in record else f"no {column!r}")
    return Unreadable(f"{column!r} is not text but {type(record[column]).__name__}")


def _lines(path: Path, start: int, end: int | None) -> Iterator[tuple[int, Any]]:
    """(line, record) of a byte range; blank lines count as lines, and give nothing."""
    loads = orjson.loads
    for number, line in enumerate(chain.from_iterable(line_blocks(path, start, end)), 1):
        try:
            yield number, loads(line)
        except orjson.JSONDecodeError:
            if line.strip():
                yield number, _leniently(line)


def _leniently(line: bytes) -> Any:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError:
        return Unreadable("invalid UTF-8")
    except (ValueError, RecursionError):
        return Unreadable("invalid JSON")
