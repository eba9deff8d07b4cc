"""Reads texts from JSON: one object per line, or one array of objects.

Lines are parsed with orjson; lines that it rejects but Python's json accepts (lone surrogates, NaN) are read too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import orjson

from krill.errors import UsageError
from krill.sources.formats import BOM, UnreadableRecord, parse_file_kind, read_beginning, read_line_blocks
from krill.sources.json_array import iterate_array_elements
from krill.sources.source import describe_missing_column


def read_json_texts(
    path: Path, column: str, start: int = 0, end: int | None = None
) -> Iterator[tuple[int, str | UnreadableRecord]]:
    """Yields (line number within the byte range, or record number in an array; text).

    Raises UsageError if the file has no record, or if no record of its first byte range has the column.
    """
    has_records, has_column = False, start > 0
    columns: dict[str, None] = {}
    for number, record in (
        iterate_array_elements(path) if is_json_array(path) else _parse_lines(path, start, end)
    ):
        has_records = True
        if type(record) is dict:
            text = record.get(column)
            if type(text) is str:
                has_column = True
                yield number, text
                continue
            has_column = has_column or column in record
            if not has_column:
                columns |= dict.fromkeys(record)
        yield number, _explain_missing_text(record, column)
    if columns and not has_column:
        raise UsageError(describe_missing_column(str(path), column, list(columns)))
    if not has_records and start == 0 and (end is None or end == path.stat().st_size):
        raise UsageError(f"{path}: has no records; recreate it or remove it from data.paths")


def is_json_array(path: Path) -> bool:
    """Returns whether a file is one JSON array: a .json file whose first character is `[`."""
    return parse_file_kind(path)[0] == ".json" and read_beginning(path).removeprefix(BOM).lstrip()[:1] == b"["


def _explain_missing_text(record: Any, column: str) -> UnreadableRecord:
    if isinstance(record, UnreadableRecord):
        return record
    if not isinstance(record, dict):
        return UnreadableRecord("not a JSON object")
    if record.get(column) is None:
        return UnreadableRecord(f"{column!r} is null" if column in record else f"no {column!r}")
    return UnreadableRecord(f"{column!r} is not text but {type(record[column]).__name__}")


def _parse_lines(path: Path, start: int, end: int | None) -> Iterator[tuple[int, Any]]:
    """Yields (line number, record) of a byte range; blank lines are counted and skipped."""
    loads = orjson.loads
    for number, line in enumerate(chain.from_iterable(read_line_blocks(path, start, end)), 1):
        try:
            yield number, loads(line)
        except orjson.JSONDecodeError:
            if line.strip():
                yield number, _parse_leniently(line)


def _parse_leniently(line: bytes) -> Any:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError:
        return UnreadableRecord("invalid UTF-8")
    except (ValueError, RecursionError):
        return UnreadableRecord("invalid JSON")
