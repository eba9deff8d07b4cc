"""Reads texts from CSV and TSV files whose first row names the columns.

A row with invalid quoting costs only that row: reading continues with the line after its first. Many TSV files
do not use quoting, and a text in them may begin with a quotation mark: such a row is read literally if its line
has as many fields as there are columns.
"""

from __future__ import annotations

import csv
import sys
from collections import deque
from collections.abc import Iterator
from copy import copy
from functools import partial
from itertools import chain, islice, tee
from pathlib import Path

from krill.errors import UsageError
from krill.sources.formats import (
    BOM,
    READ_BLOCK_BYTES,
    TOO_LONG,
    UnreadableRecord,
    parse_file_kind,
    read_line_blocks,
)
from krill.sources.source import find_column_name_problem

MAX_FIELD_CHARACTERS = 2**27
"""Maximum length of a field in characters; bounds what an unclosed quotation mark can consume."""
_REPEATED_HEADER = UnreadableRecord("repeated header", is_intact=True)
"""A row that names the columns again, where files were joined."""
_TOO_LONG_LINE = "\ud800\n"
"""Replaces a line that is too long; no other line contains a surrogate of this half."""


def read_csv_texts(
    path: Path, column: str, max_bytes: int = sys.maxsize
) -> Iterator[tuple[int, str | UnreadableRecord]]:
    """Yields (line on which the row begins, text) for each row.

    A row with a line longer than `max_bytes` is `TOO_LONG`. Raises UsageError for a file without the column, with two
    columns of its name, or without rows.
    """
    rows = _read_rows(path, max_bytes)
    columns = _read_header(rows, path)
    if problem := find_column_name_problem(str(path), column, columns):
        raise UsageError(problem)
    index, width, has_rows = columns.index(column), len(columns), False
    for number, row in rows:
        has_rows = True
        if isinstance(row, UnreadableRecord):
            yield number, row
        elif len(row) <= index and any(_TOO_LONG_LINE[0] in field for field in row):
            yield number, TOO_LONG
        elif row == columns:
            yield number, _REPEATED_HEADER
        elif len(row) > width and any(row[width:]):
            yield number, UnreadableRecord("more fields than columns")
        elif len(row) <= index:
            yield number, UnreadableRecord("fewer fields than columns")
        else:
            yield number, _validate_utf8(row[index])
    if not has_rows:
        raise UsageError(f"{path}: has no row after its header; remove it from data.paths")


def find_csv_problem(path: Path, column: str) -> str | None:
    """Returns what is wrong with the header, or None; reads only the beginning of the file. Raises OSError."""
    try:
        columns = _read_header(_read_rows(path, READ_BLOCK_BYTES), path)
    except UsageError as error:
        return str(error)
    return find_column_name_problem(str(path), column, columns)


def _validate_utf8(text: str) -> str | UnreadableRecord:
    try:
        text.encode()
    except UnicodeEncodeError:  # surrogates from invalid bytes, see _decode_lines
        return TOO_LONG if _TOO_LONG_LINE[0] in text else UnreadableRecord("invalid UTF-8")
    return text


def _read_header(rows: Iterator[tuple[int, list[str] | UnreadableRecord]], path: Path) -> list[str]:
    number, header = next(rows, (1, UnreadableRecord("")))
    if isinstance(header, UnreadableRecord) or any(_TOO_LONG_LINE[0] in field for field in header):
        raise UsageError(
            f"{path}:{number}: the header row, which names the columns, is not valid CSV; fix it"
        )
    return header


def _read_rows(path: Path, max_bytes: int) -> Iterator[tuple[int, list[str] | UnreadableRecord]]:
    """Yields (line on which a row begins, its fields); skips blank lines."""
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    tabs = parse_file_kind(path)[0] == ".tsv"
    reader = partial(csv.reader, delimiter="\t" if tabs else ",", strict=True)
    # row_lines stays where the current row begins
    row_lines, parser_lines = tee(_decode_lines(path, max_bytes))
    rows, lines_before, number, columns = reader(parser_lines), 0, 1, 0
    while True:
        row: list[str] | UnreadableRecord
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error:
            row = UnreadableRecord("invalid CSV")
        count = rows.line_num - lines_before
        failed = isinstance(row, UnreadableRecord)
        if tabs and columns > 1 and (failed or count > 1):
            unquoted = _parse_unquoted(islice(copy(row_lines), 1 if failed else count), columns)
            row, failed = unquoted or row, failed or unquoted is not None
        if row:
            columns = columns or len(row)
            yield number, row
        if failed:  # consume the first line of the row and parse the others again
            next(row_lines)
            rows, lines_before, count = reader(copy(row_lines)), 0, 1
        else:
            deque(islice(row_lines, count), maxlen=0)
            lines_before = rows.line_num
        number += count


def _parse_unquoted(lines: Iterator[str], columns: int) -> list[str] | None:
    """Returns the fields of the first line if every line is a row without quoting, else None."""
    first = next(lines).rstrip("\r\n").split("\t")
    is_unquoted = len(first) == columns and all(line.count("\t") == columns - 1 for line in lines)
    return first if is_unquoted else None


def _decode_lines(path: Path, max_bytes: int) -> Iterator[str]:
    """Yields the lines with their line ends; invalid UTF-8 becomes surrogates."""
    return chain.from_iterable(
        [
            _TOO_LONG_LINE
            if line is None
            else line.removeprefix(BOM).decode("utf-8", "surrogateescape") + "\n"
            for line in block
        ]
        for block in read_line_blocks(path, max_bytes=max_bytes)
    )
