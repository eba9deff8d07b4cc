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

from krill.config.schema import FilesDataConfig
from krill.errors import KrillError
from krill.sources.csv_reader import read_csv_texts
from krill.sources.formats import (
    BOM,
    UnreadableRecord,
    count_newlines,
    find_line_start,
    parse_file_kind,
    read_blocks,
)
from krill.sources.hash_cache import hash_files_cached
from krill.sources.json_reader import is_json_array, read_json_texts
from krill.sources.parquet import count_rows_before, measure_row_groups, read_parquet_texts
from krill.sources.paths import resolve_paths
from krill.sources.source import (
    Document,
    Part,
    SkippedRecords,
    Source,
    compute_part_bytes,
    disambiguate_names,
)

MAX_NUMBERED_BYTES = 2**30
"""Lines are counted from the beginning of a file to so far; behind it from the beginning of their part."""


class FileSlice(NamedTuple):
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

    def __init__(self, config: FilesDataConfig) -> None:
        self._entries = resolve_paths(config)
        paths = [entry.path for entry in self._entries]
        names = disambiguate_names([Path(path).name or path for path in paths], paths)
        super().__init__(names, [entry.weight for entry in self._entries])
        self._line_counts: dict[Path, tuple[int, int]] = {}
        """File → (byte, lines before it), the last that was asked for."""

    def fingerprint(self) -> Any:
        """Per entry its name, settings and the xxh3_128 of each file: a copy is the same data."""
        digests = iter(hash_files_cached([path for entry in self._entries for path in entry.files]))
        return [
            {
                "name": name,
                "text_column": entry.column,
                "weight": entry.weight,
                "limit": entry.limit,
                "files": [f"{parse_file_kind(path)[0]} {next(digests)}" for path in entry.files],
            }
            for name, entry in zip(self.names, self._entries, strict=True)
        ]

    def list_parts(self) -> list[Part]:
        goal = compute_part_bytes(
            sum(_get_text_size(path, entry.column) for entry in self._entries for path in entry.files)
        )
        parts: list[Part] = []
        for source, entry in enumerate(self._entries):
            slices = (
                part
                for file, path in enumerate(entry.files)
                for part in _slice_file(file, path, entry.column, goal)
            )
            # Whether a limit is reached is known only where the documents are read in order.
            parts += _group_slices(source, slices, goal if entry.limit is None else None)
        return parts

    def read(self, part: Part, skipped: SkippedRecords) -> Iterator[Document]:
        return islice(self._read_documents(part, skipped), self._entries[part.source].limit)

    def describe_location(self, part: Part, place: tuple[int, int]) -> str:
        index, number = place
        file, start, end = part.span[index]
        path = self._entries[part.source].files[file]
        if parse_file_kind(path)[0] == ".parquet":
            return f"{path}: row {count_rows_before(path, start) + number}"
        if start > MAX_NUMBERED_BYTES:
            return f"{path}: line {number} after byte {start}"
        if end is None and is_json_array(path):
            return f"{path}: record {number}"
        number += self._count_lines_before(path, start) if start else 0
        return f"{path}:{number}" if number else str(path)

    def _read_documents(self, part: Part, skipped: SkippedRecords) -> Iterator[Document]:
        entry = self._entries[part.source]
        for index, (file, start, end) in enumerate(part.span):
            path, number = entry.files[file], 0
            try:
                for number, text in _read_texts(path, entry.column, start, end):
                    if isinstance(text, str):
                        yield Document(text, (index, number))
                    else:
                        skipped.add(text.reason, partial(self.describe_location, part, (index, number)))
            except OSError as error:
                last = str(path)
                with suppress(OSError):
                    last = self.describe_location(part, (index, number))
                raise KrillError(
                    f"{last}: what follows cannot be read ({error}). Write the file anew"
                ) from error

    def _count_lines_before(self, path: Path, byte: int) -> int:
        at, count = self._line_counts.get(path, (0, 0))
        if at > byte:
            at, count = 0, 0
        count += count_newlines(path, at, byte)
        self._line_counts[path] = byte, count
        return count


def _get_text_size(path: Path, column: str) -> int:
    """Bytes that a file counts for."""
    if parse_file_kind(path)[0] == ".parquet":
        return sum(size for _, size in measure_row_groups(path, column))
    return path.stat().st_size


def _slice_file(file: int, path: Path, column: str, goal: int) -> Iterator[FileSlice]:
    """The least parts of a file, in order, where they can be told about `goal` bytes long."""
    kind, compression = parse_file_kind(path)
    if kind == ".parquet":
        for group, (rows, size) in enumerate(measure_row_groups(path, column)):
            if rows:
                yield FileSlice(file, group, group + 1, size)
    elif compression or kind not in (".jsonl", ".json") or is_json_array(path):
        yield FileSlice(file, 0, None, path.stat().st_size)
    else:
        start, size = 0, path.stat().st_size
        while start < size:
            end = find_line_start(path, min(start + goal, size))
            yield FileSlice(file, start, end, end - start)
            start = end


def _group_slices(source: int, slices: Iterable[FileSlice], goal: int | None) -> Iterator[Part]:
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


def _read_texts(
    path: Path, column: str, start: int, end: int | None
) -> Iterator[tuple[int, str | UnreadableRecord]]:
    """Yield (line, row or record of the slice; text)."""
    match parse_file_kind(path)[0]:
        case ".parquet":
            assert end is not None
            return read_parquet_texts(path, column, start, end)
        case ".csv" | ".tsv":
            return read_csv_texts(path, column)
        case ".txt":
            return _read_whole_file(path)
        case _:
            return read_json_texts(path, column, start, end)


def _read_whole_file(path: Path) -> Iterator[tuple[int, str | UnreadableRecord]]:
    content = b"".join(read_blocks(path)).removeprefix(BOM)
    try:
        yield 0, content.decode()
    except UnicodeDecodeError as error:
        yield content.count(b"\n", 0, error.start) + 1, UnreadableRecord("invalid UTF-8")
