"""Texts from CSV and TSV, in which the first row names the columns.

A row that breaks the rules of quoting costs that row: reading goes on with the line after its first. Many
TSV files know no quoting, and a text in them may begin with a quotation mark: such a row is taken as it is,
where its line has as many fields as there are columns.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator
from copy import copy
from functools import partial
from itertools import chain, islice, tee
from pathlib import Path

from krill.errors import UsageError
from krill.sources.formats import UnreadableRecord, parse_file_kind, read_line_blocks
from krill.sources.source import describe_missing_column

MAX_FIELD_CHARACTERS = 2**27
"""Characters: what a quotation mark that is never closed may swallow before its row is given up."""


def read_csv_texts(path: Path, column: str) -> Iterator[tuple[int, str | UnreadableRecord]]:
    """Yield (line on which the row begins, text). Raises UsageError for a file without the column or a row."""
    rows = _read_rows(path)
    columns = _read_header(rows, path)
    if column not in columns:
        raise UsageError(describe_missing_column(str(path), column, columns))
    index, width, seen = columns.index(column), len(columns), False
    for number, row in rows:
        seen = True
        if isinstance(row, UnreadableRecord):
            yield number, row
        elif len(row) > width and any(row[width:]):
            yield number, UnreadableRecord("more fields than columns")
        elif len(row) <= index:
            yield number, UnreadableRecord("fewer fields than columns")
        else:
            yield number, _validate_utf8(row[index])
    if not seen:
        raise UsageError(f"{path}: holds no row but its header; leave it out of data.paths")


def find_csv_problem(path: Path, column: str) -> str | None:
    """What is wrong with the first row, if anything is; reads the beginning of the file only."""
    try:
        columns = _read_header(_read_rows(path), path)
    except UsageError as error:
        return str(error)
    except OSError as error:
        return f"{path}: cannot be read ({error}); write it anew, or leave it out of data.paths"
    return None if column in columns else describe_missing_column(str(path), column, columns)


def _validate_utf8(text: str) -> str | UnreadableRecord:
    try:
        text.encode()
    except UnicodeEncodeError:  # "surrogateescape" of invalid bytes
        return UnreadableRecord("invalid UTF-8")
    return text


def _read_header(rows: Iterator[tuple[int, list[str] | UnreadableRecord]], path: Path) -> list[str]:
    _, header = next(rows, (1, UnreadableRecord("")))
    if isinstance(header, UnreadableRecord):
        raise UsageError(f"{path}:1: its first row, which names the columns, is no valid CSV; mend it")
    return header


def _read_rows(path: Path) -> Iterator[tuple[int, list[str] | UnreadableRecord]]:
    """Yield (line on which a row begins, its fields); blank lines give nothing."""
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    tabs = parse_file_kind(path)[0] == ".tsv"
    reader = partial(csv.reader, delimiter="\t" if tabs else ",", strict=True)
    behind, ahead = tee(_decode_lines(path))  # `behind` stays where the row begins
    ahead_rows, before, number, columns = reader(ahead), 0, 1, 0
    while True:
        row: list[str] | UnreadableRecord
        try:
            row = next(ahead_rows)
        except StopIteration:
            return
        except csv.Error:
            row = UnreadableRecord("invalid CSV")
        count = ahead_rows.line_num - before
        failed = isinstance(row, UnreadableRecord)
        if tabs and columns > 1 and (failed or count > 1):
            plain = _parse_unquoted(islice(copy(behind), 1 if failed else count), columns)
            row, failed = plain or row, failed or plain is not None
        if row:
            columns = columns or len(row)
            yield number, row
        if failed:  # its first line is done with, the others are read again
            next(behind)
            ahead_rows, before, count = reader(copy(behind)), 0, 1
        else:
            deque(islice(behind, count), maxlen=0)
            before = ahead_rows.line_num
        number += count


def _parse_unquoted(taken: Iterator[str], columns: int) -> list[str] | None:
    """The fields of the first line, if each of the lines is a row without any quoting."""
    first = next(taken).rstrip("\r\n").split("\t")
    whole = len(first) == columns and all(line.count("\t") == columns - 1 for line in taken)
    return first if whole else None


def _decode_lines(path: Path) -> Iterator[str]:
    """The lines, with their ends; what is not UTF-8 becomes surrogates."""
    return chain.from_iterable(
        [line.decode("utf-8", "surrogateescape") + "\n" for line in block] for block in read_line_blocks(path)
    )
