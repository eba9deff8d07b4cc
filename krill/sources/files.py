"""Documents from local files.

.jsonl .json   one JSON object per line, one array of objects, or objects that extend over several lines
.parquet       a string column
.csv .tsv      the first row names the columns
.txt           one document: the whole file
               all except .parquet also with .gz or .zst

A part is a list of file slices: byte ranges of JSON lines, aligned to line boundaries; row groups of Parquet;
all other files as a whole.
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
from krill.sources.file_checks import require_readable_records
from krill.sources.formats import (
    BOM,
    TOO_LONG,
    UnreadableRecord,
    count_newlines,
    find_line_start,
    parse_file_kind,
    read_blocks,
)
from krill.sources.hash_cache import hash_files_cached
from krill.sources.json_reader import detect_json_layout, read_json_texts
from krill.sources.parquet import count_rows_before, measure_row_groups, read_parquet_texts
from krill.sources.paths import resolve_paths
from krill.sources.source import (
    Document,
    Part,
    SkippedRecords,
    Source,
    compute_part_bytes,
    disambiguate_names,
    identify_record_limit,
)

MAX_NUMBERED_BYTES = 2**30
"""Line numbers count from the beginning of the file up to this byte, beyond it from the beginning of the part."""


class FileSlice(NamedTuple):
    """A contiguous slice of one file."""

    file: int
    """Index in the files of the entry."""
    start: int
    """First byte (JSON lines) or first row group (Parquet); 0 for whole files."""
    end: int | None
    """One past the last byte or row group; None for whole files."""
    size: int
    """Size in bytes; for Parquet the uncompressed bytes of the text column."""


class FileSource(Source):
    """Reads local files. Each entry of `data.paths` is one source, named after the last component of its path."""

    def __init__(self, config: FilesDataConfig, is_read_only: bool = False) -> None:
        self._is_read_only = is_read_only
        self._max_record_bytes = config.max_record_bytes
        self._entries = resolve_paths(config)
        paths = [entry.path for entry in self._entries]
        names = disambiguate_names([Path(path).name or path for path in paths], paths)
        super().__init__(names, [entry.weight for entry in self._entries])
        self._line_counts: dict[Path, tuple[int, int]] = {}
        """File → (byte offset, number of lines before it) of the last lookup."""

    def compute_fingerprint(self) -> Any:
        """Returns the name, settings and xxh3_128 of each file per entry: a copy has the same fingerprint."""
        digests = iter(
            hash_files_cached([path for entry in self._entries for path in entry.files], self._is_read_only)
        )
        return [
            {
                "name": name,
                "text_column": entry.column,
                "weight": entry.weight,
                "limit": entry.limit,
                "files": [f"{_describe_format(path)} {next(digests)}" for path in entry.files],
                **identify_record_limit(self._max_record_bytes),
            }
            for name, entry in zip(self.names, self._entries, strict=True)
        ]

    def list_parts(self) -> list[Part]:
        part_bytes = compute_part_bytes(
            sum(_get_text_size(path, entry.column) for entry in self._entries for path in entry.files)
        )
        parts: list[Part] = []
        for source, entry in enumerate(self._entries):
            slices = (
                part
                for file, path in enumerate(entry.files)
                for part in _slice_file(file, path, entry.column, part_bytes)
            )
            # A limit needs a single part: its documents must be counted in order.
            parts += _group_slices(source, slices, part_bytes if entry.limit is None else None)
        return parts

    def read(self, part: Part, skipped: SkippedRecords) -> Iterator[Document]:
        return islice(self._read_documents(part, skipped), self._entries[part.source].limit)

    def describe_location(self, part: Part, location: tuple[int, int]) -> str:
        index, number = location
        file, start, end = part.span[index]
        path = self._entries[part.source].files[file]
        if parse_file_kind(path)[0] == ".parquet":
            return f"{path}: row {count_rows_before(path, start) + number}"
        if start > MAX_NUMBERED_BYTES:
            return f"{path}: line {number} after byte {start}"
        if end is None and _is_json(path) and detect_json_layout(path) != "lines":
            return f"{path}: record {number}"
        number += self._count_lines_before(path, start) if start else 0
        return f"{path}:{number}" if number else str(path)

    def _read_documents(self, part: Part, skipped: SkippedRecords) -> Iterator[Document]:
        entry = self._entries[part.source]
        for index, (file, start, end) in enumerate(part.span):
            path, number = entry.files[file], 0
            try:
                for number, text in _read_texts(path, entry.column, start, end, self._max_record_bytes):
                    if isinstance(text, str):
                        yield Document(text, (index, number))
                    else:
                        skipped.add(text.reason, partial(self.describe_location, part, (index, number)))
            except OSError as error:
                location = str(path)
                with suppress(OSError):
                    location = self.describe_location(part, (index, number))
                raise KrillError(
                    f"{location}: the rest cannot be read ({error}). Recreate the file"
                ) from error

    def _count_lines_before(self, path: Path, byte: int) -> int:
        start, count = self._line_counts.get(path, (0, 0))
        if start > byte:
            start, count = 0, 0
        count += count_newlines(path, start, byte)
        self._line_counts[path] = byte, count
        return count


def _is_json(path: Path) -> bool:
    return parse_file_kind(path)[0] in (".jsonl", ".json")


def _describe_format(path: Path) -> str:
    """Returns what determines how the bytes of a file are read: its kind, and a layout that is unusual for it."""
    kind = parse_file_kind(path)[0]
    layout = detect_json_layout(path) if _is_json(path) else "lines"
    is_usual = layout == "lines" or (kind, layout) == (".json", "array")
    return kind if is_usual else f"{kind} {layout}"


def _get_text_size(path: Path, column: str) -> int:
    """Returns the size of a file for part planning: bytes, for Parquet those of the text column."""
    if parse_file_kind(path)[0] == ".parquet":
        return sum(size for _, size in measure_row_groups(path, column))
    return path.stat().st_size


def _slice_file(file: int, path: Path, column: str, slice_bytes: int) -> Iterator[FileSlice]:
    """Yields the smallest slices of a file, in order; JSON lines are cut into about `slice_bytes` bytes."""
    kind, compression = parse_file_kind(path)
    if kind == ".parquet":
        for group, (rows, size) in enumerate(measure_row_groups(path, column)):
            if rows:
                yield FileSlice(file, group, group + 1, size)
    elif compression or not _is_json(path) or detect_json_layout(path) != "lines":
        yield FileSlice(file, 0, None, path.stat().st_size)
    else:
        start, size = 0, path.stat().st_size
        while start < size:
            end = find_line_start(path, min(start + slice_bytes, size))
            yield FileSlice(file, start, end, end - start)
            start = end


def _group_slices(source: int, slices: Iterable[FileSlice], part_bytes: int | None) -> Iterator[Part]:
    """Yields parts of at least `part_bytes` bytes (except the last); None yields a single part."""
    span: list[list[int | None]] = []
    size = 0
    for file, start, end, slice_bytes in slices:
        if span and span[-1][0] == file:
            span[-1][2] = end  # extends the previous slice
        else:
            span.append([file, start, end])
        size += slice_bytes
        if part_bytes is not None and size >= part_bytes:
            yield Part(source, span, size)
            span, size = [], 0
    if span:
        yield Part(source, span, size)


def _read_texts(
    path: Path, column: str, start: int, end: int | None, max_bytes: int
) -> Iterator[tuple[int, str | UnreadableRecord]]:
    """Yields (line, row or record number within the slice, text); raises UsageError for an unreadable file."""
    match parse_file_kind(path)[0]:
        case ".parquet":
            assert end is not None
            texts = read_parquet_texts(path, column, start, end, max_bytes)
            is_whole = end == len(measure_row_groups(path, column))
        case ".csv" | ".tsv":
            texts, is_whole = read_csv_texts(path, column, max_bytes), True
        case ".txt":
            texts, is_whole = _read_whole_file(path, max_bytes), True
        case _:
            texts = read_json_texts(path, column, start, end, max_bytes)
            is_whole = end is None or end == path.stat().st_size
    return texts if start else require_readable_records(path, texts, is_whole)


def _read_whole_file(path: Path, max_bytes: int) -> Iterator[tuple[int, str | UnreadableRecord]]:
    blocks, size = [], 0
    for block in read_blocks(path):
        blocks.append(block)
        size += len(block)
        if size > max_bytes:
            yield 0, TOO_LONG
            return
    content = b"".join(blocks).removeprefix(BOM)
    try:
        yield 0, content.decode()
    except UnicodeDecodeError as error:
        yield content.count(b"\n", 0, error.start) + 1, UnreadableRecord("invalid UTF-8")
