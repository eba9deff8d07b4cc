"""Documents from files of this machine.

.jsonl  one JSON object a line                   .parquet    a string column
.json   the same, or one array of objects        .csv .tsv   the first row names the columns
.txt    one document: the whole file             each but .parquet also with .gz or .zst

A part is a run of slices: byte ranges of JSON lines, which begin and end with lines; row groups of Parquet;
everything else as whole files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from krill.config.schema import Files
from krill.errors import KrillError
from krill.sources.arrow_text import parquet_texts, row_groups, rows_before
from krill.sources.csv_records import csv_texts
from krill.sources.digests import content_digests
from krill.sources.formats import BOM, Unreadable, blocks, kind_of, line_start, newlines
from krill.sources.json_records import is_array, json_texts
from krill.sources.paths import found
from krill.sources.source import Document, Part, Skipped, Source, distinct, part_bytes

NUMBERED_BYTES = 2**30
"""Lines are counted from the beginning of a file to so far; behind it from the beginning of their part."""


class Slice(NamedTuple):
    """What is read of one file."""

    file: int
    """Index among the files of its entry."""
    start: int
    """First byte of JSON lines, first row group of Parquet; 0: the whole file."""
    end: int | None
    """Behind the last; None: the whole file."""
    size: int
    """Bytes; of Parquet those of the text column before compression."""


class FileSource(Source):
    """Files of this machine. Each entry of `data.paths` is one source, named by its last part."""

    def __init__(self, config: Files) -> None:
        self._entries = found(config)
        paths = [entry.path for entry in self._entries]
        names = distinct([Path(path).name or path for path in paths], paths)
        super().__init__(names, [entry.weight for entry in self._entries])
        self._counted: dict[Path, tuple[int, int]] = {}
        """File → (byte, lines before it), the last that was asked for."""

    def fingerprint(self) -> Any:
        """Per entry its name, settings and the xxh3_128 of each file: a copy is the same data."""
        digests = iter(content_digests([path for entry in self._entries for path in entry.files]))
        return [
            {
                "name": name,
                "text_column": entry.column,
                "weight": entry.weight,
                "limit": entry.limit,
                "files": [f"{kind_of(path)[0]} {next(digests)}" for path in entry.files],
            }
            for name, entry in zip(self.names, self._entries, strict=True)
        ]

    def parts(self) -> list[Part]:
        goal = part_bytes(sum(_size(path, entry.column) for entry in self._entries for path in entry.files))
        parts: list[Part] = []
        for source, entry in enumerate(self._entries):
            slices = (
                part
                for file, path in enumerate(entry.files)
                for part in _slices(file, path, entry.column, goal)
            )
            # Whether a limit is reached is known only where the documents are read in order.
            parts += _grouped(source, slices, goal if entry.limit is None else None)
        return parts

    def read(self, part: Part, skipped: Skipped) -> Iterator[Document]:
        return islice(self._documents(part, skipped), self._entries[part.source].limit)

    def spell(self, part: Part, place: tuple[int, int]) -> str:
        index, number = place
        file, start, end = part.span[index]
        path = self._entries[part.source].files[file]
        if kind_of(path)[0] == ".parquet":
            return f"{path}: row {rows_before(path, start) + number}"
        if start > NUMBERED_BYTES:
            return f"{path}: line {number} after byte {start}"
        if end is None and is_array(path):
            return f"{path}: record {number}"
        number += self._lines_before(path, start) if start else 0
        return f"{path}:{number}" if number else str(path)

    def _documents(self, part: Part, skipped: Skipped) -> Iterator[Document]:
        entry = self._entries[part.source]
        for index, (file, start, end) in enumerate(part.span):
            path, number = entry.files[file], 0
            try:
                for number, text in _texts(path, entry.column, start, end):
                    if isinstance(text, str):
                        yield Document(text, (index, number))
                    else:
                        skipped.add(text.reason, partial(self.spell, part, (index, number)))
            except OSError as error:
                last = str(path)
                with suppress(OSError):
                    last = self.spell(part, (index, number))
                raise KrillError(
                    f"{last}: what follows cannot be read ({error}). Write the file anew"
                ) from error

    def _lines_before(self, path: Path, byte: int) -> int:
        at, count = self._counted.get(path, (0, 0))
        if at > byte:
            at, count = 0, 0
        count += newlines(path, at, byte)
        self._counted[path] = byte, count
        return count


def _size(path: Path, column: str) -> int:
    """Bytes that a file counts for."""
    if kind_of(path)[0] == ".parquet":
        return sum(size for _, size in row_groups(path, column))
    return path.stat().st_size


def _slices(file: int, path: Path, column: str, goal: int) -> Iterator[Slice]:
    """The least parts of a file, in order, where they can be told about `goal` bytes long."""
    kind, compression = kind_of(path)
    if kind == ".parquet":
        for group, (rows, size) in enumerate(row_groups(path, column)):
            if rows:
                yield Slice(file, group, group + 1, size)
    elif compression or kind not in (".jsonl", ".json") or is_array(path):
        yield Slice(file, 0, None, path.stat().st_size)
    else:
        start, size = 0, path.stat().st_size
        while start < size:
            end = line_start(path, min(start + goal, size))
            yield Slice(file, start, end, end - start)
            start = end


def _grouped(source: int, slices: Iterable[Slice], goal: int | None) -> Iterator[Part]:
    """Parts of at least `goal` bytes (but the last); None: a single part."""
    span: list[list[int | None]] = []
    size = 0
    for file, start, end, more in slices:
        if span and span[-1][0] == file:
            span[-1][2] = end  # goes on where the last one ended
        else:
            span.append([file, start, end])
        size += more
        if goal is not None and size >= goal:
            yield Part(source, span, size)
            span, size = [], 0
    if span:
        yield Part(source, span, size)


def _texts(path: Path, column: str, start: int, end: int | None) -> Iterator[tuple[int, str | Unreadable]]:
    """Yield (line, row or record of the slice; text)."""
    match kind_of(path)[0]:
        case ".parquet":
            assert end is not None
            return parquet_texts(path, column, start, end)
        case ".csv" | ".tsv":
            return csv_texts(path, column)
        case ".txt":
            return _whole(path)
        case _:
            return json_texts(path, column, start, end)


def _whole(path: Path) -> Iterator[tuple[int, str | Unreadable]]:
    content = b"".join(blocks(path)).removeprefix(BOM)
    try:
        yield 0, content.decode()
    except UnicodeDecodeError as error:
        yield content.count(b"\n", 0, error.start) + 1, Unreadable("invalid UTF-8")
