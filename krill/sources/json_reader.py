"""Reads texts from JSON: one object per line, one array of objects, or objects that extend over several lines.

Lines are parsed with orjson; lines that it rejects but Python's json accepts (lone surrogates, NaN) are read too. Of
two keys of one name in an object the last counts, as in every JSON parser.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import orjson

from krill.errors import UsageError
from krill.sources.formats import (
    BOM,
    READ_BLOCK_BYTES,
    TOO_LONG,
    UnreadableRecord,
    parse_file_kind,
    read_beginning,
    read_line_blocks,
)
from krill.sources.json_array import is_incomplete, iterate_array_elements, iterate_values
from krill.sources.source import describe_missing_column


def read_json_texts(
    path: Path, column: str, start: int = 0, end: int | None = None, max_bytes: int = sys.maxsize
) -> Iterator[tuple[int, str | UnreadableRecord]]:
    """Yields (line number within the byte range, or record number if not one per line; text).

    Raises UsageError if the file has no record, or if no record of its first byte range has the column.
    """
    has_records, has_column = False, start > 0
    columns: dict[str, None] = {}
    for number, record in _read_records(path, start, end, max_bytes):
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
        message = describe_missing_column(str(path), column, list(columns))
        raise UsageError(message + _suggest_list(path, record))
    if not has_records and start == 0 and (end is None or end == path.stat().st_size):
        raise UsageError(f"{path}: has no records; recreate it or remove it from data.paths")


def _suggest_list(path: Path, record: Any) -> str:
    """Returns how to write the records of a list within an object as lines, as a continuation of an error message."""
    for key, value in record.items() if isinstance(record, dict) else ():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            old, new = shlex.quote(str(path)), shlex.quote(f"{path.name.partition('.')[0]}.jsonl")
            return (
                f", or write the elements of {key!r} as lines: jq -c '.[{json.dumps(key)}][]' {old} > {new}"
            )
    return ""


def detect_json_layout(path: Path) -> Literal["lines", "array", "values"]:
    """Returns how the records of a file follow each other, by its first bytes, whatever its suffix.

    lines: one per line. array: the elements of one array. values: pretty-printed, each on several lines.
    """
    beginning = read_beginning(path).removeprefix(BOM).lstrip()
    first_line, newline, others = beginning.partition(b"\n")
    if beginning.startswith(b"["):
        is_one_value = not (_is_json(first_line) and others.strip())
        is_array = parse_file_kind(path)[0] == ".json" or re.match(rb"\[\s*\{", beginning)
        return "array" if is_one_value and is_array else "lines"
    if not (beginning.startswith(b"{") and newline) or _is_json(first_line):
        return "lines"
    if first_line.strip() == b"{":
        return "lines" if _is_json(others.partition(b"\n")[0]) else "values"
    return "values" if _begins_with_value(beginning) else "lines"


def _is_json(line: bytes) -> bool:
    return not isinstance(_parse_leniently(line), UnreadableRecord)


def _begins_with_value(beginning: bytes) -> bool:
    """Returns whether text begins with a JSON value of several lines, perhaps cut off at the end of `beginning`."""
    text = beginning.decode("utf-8", "surrogateescape").rstrip()
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as error:
        return is_incomplete(error) if len(beginning) > READ_BLOCK_BYTES // 2 else is_incomplete(error, 1)
    except RecursionError:
        return False
    return "\n" in text[:end]


def _read_records(path: Path, start: int, end: int | None, max_bytes: int) -> Iterator[tuple[int, Any]]:
    layout = detect_json_layout(path) if end is None else "lines"
    if layout == "array":
        return iterate_array_elements(path, max_bytes)
    if layout == "values":
        return iterate_values(path, max_bytes)
    return _parse_lines(path, start, end, max_bytes)


def _explain_missing_text(record: Any, column: str) -> UnreadableRecord:
    if isinstance(record, UnreadableRecord):
        return record
    if not isinstance(record, dict):
        return UnreadableRecord("not a JSON object")
    if record.get(column) is None:
        reason = f"{column!r} is null" if column in record else f"no {column!r}"
        return UnreadableRecord(reason, is_intact=True)
    return UnreadableRecord(f"{column!r} is not text but {type(record[column]).__name__}")


def _parse_lines(path: Path, start: int, end: int | None, max_bytes: int) -> Iterator[tuple[int, Any]]:
    """Yields (line number, record) of a byte range; blank lines are counted and skipped."""
    loads = orjson.loads
    lines = chain.from_iterable(read_line_blocks(path, start, end, max_bytes))
    for number, line in enumerate(lines, 1):
        if line is None:
            yield number, TOO_LONG
            continue
        try:
            yield number, loads(line)
        except orjson.JSONDecodeError:
            if line.removeprefix(BOM).strip():
                yield number, _parse_leniently(line)


def _parse_leniently(line: bytes) -> Any:
    try:
        # A BOM is where files were joined, a comma where an array was taken apart.
        return json.loads(line.removeprefix(BOM).rstrip().removesuffix(b",").decode())
    except UnicodeDecodeError:
        return UnreadableRecord("invalid UTF-8")
    except (ValueError, RecursionError):
        return UnreadableRecord("invalid JSON")
