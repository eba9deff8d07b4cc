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
from krill.sources.formats import Unreadable, kind_of, line_blocks
from krill.sources.source import no_column

LONGEST_FIELD = 2**27
"""Characters: what a quotation mark that is never closed may swallow before its row is given up."""


def csv_texts(path: Path, column: str) -> Iterator[tuple[int, str | Unreadable]]:
    """Yield (line on which the row begins, text). Raises UsageError for a file without the column or a row."""
    rows = _rows(path)
    columns = _header(rows, path)
    if column not in columns:
        raise UsageError(no_column(str(path), column, columns))
    index, width, seen = columns.index(column), len(columns), False
    for number, row in rows:
        seen = True
        if isinstance(row, Unreadable):
            yield number, row
        elif len(row) > width and any(row[width:]):
            yield number, Unreadable("more fields than columns")
        elif len(row) <= index:
            yield number, Unreadable("fewer fields than columns")
        else:
            yield number, _valid(row[index])
    if not seen:
        raise UsageError(f"{path}: holds no row but its header; leave it out of data.paths")


def csv_problem(path: Path, column: str) -> str | None:
    """What is wrong with the first row, if anything is; reads the beginning of the file only."""
    try:
        columns = _header(_rows(path), path)
    except UsageError as error:
        return str(error)
    except OSError as error:
        return f"{path}: cannot be read ({error}); write it anew, or leave it out of data.paths"
    return None if column in columns else no_column(str(path), column, columns)


def _valid(text: str) -> str | Unreadable:
    try:
        text.encode()
    except UnicodeEncodeError:  # "surrogateescape" of invalid bytes
        return Unreadable("invalid UTF-8")
    return text


def _header(rows: Iterator[tuple[int, list[str] | Unreadable]], path: Path) -> list[str]:
    _, header = next(rows, (1, Unreadable("")))
    if isinstance(header, Unreadable):
        raise UsageError(f"{path}:1: its first row, which names the columns, is no valid CSV; mend it")
    return header


def _rows(path: Path) -> Iterator[tuple[int, list[str] | Unreadable]]:
    """Yield (line on which a row begins, its fields); blank lines give nothing."""
    csv.field_size_limit(LONGEST_FIELD)
    tabs = kind_of(path)[0] == ".tsv"
    reader = partial(csv.reader, delimiter="\t" if tabs else ",", strict=True)
    behind, ahead = tee(_decoded(path))  # `behind` stays where the row begins
    ahead_rows, before, number, columns = reader(ahead), 0, 1, 0
    while True:
        row: list[str] | Unreadable
        try:
            row = next(ahead_rows)
        except StopIteration:
            return
        except csv.Error:
            row = Unreadable("invalid CSV")
        count = ahead_rows.line_num - before
        failed = isinstance(row, Unreadable)
        if tabs and columns > 1 and (failed or count > 1):
            plain = _plain(islice(copy(behind), 1 if failed else count), columns)
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


def _plain(taken: Iterator[str], columns: int) -> list[str] | None:
    """The fields of the first line, if each of the lines is a row without any quoting."""
    first = next(taken).rstrip("\r\n").split("\t")
    whole = len(first) == columns and all(line.count("\t") == columns - 1 for line in taken)
    return first if whole else None


def _decoded(path: Path) -> Iterator[str]:
    """The lines, with their ends; what is not UTF-8 becomes surrogates."""
    return chain.from_iterable(
        [line.decode("utf-8", "surrogateescape") + "\n" for line in block] for block in line_blocks(path)
    )
