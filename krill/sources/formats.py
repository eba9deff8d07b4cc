"""The supported file kinds, and functions that read their bytes: in blocks or lines, decompressed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow

FILE_KINDS = (".jsonl", ".json", ".parquet", ".csv", ".tsv", ".txt")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
"""Suffix after the suffix of the kind → name in pyarrow. Parquet has its own compression."""
SUPPORTED_FORMATS = f"{' '.join(FILE_KINDS)}; all except .parquet also with {' or '.join(COMPRESSIONS)}"

BOM = b"\xef\xbb\xbf"
READ_BLOCK_BYTES = 2**20
"""Bytes per read."""


class UnreadableRecord(NamedTuple):
    """Replaces the text of a record that cannot be read."""

    reason: str
    """The reason that records are counted by; must not contain anything specific to one record."""


def parse_file_kind(path: Path) -> tuple[str, str | None]:
    """Returns (kind, compression) by file name: a.jsonl.gz → (".jsonl", "gzip"); kind "" is not supported."""
    compression = COMPRESSIONS.get(path.suffix.lower())
    kind = Path(path.stem if compression else path.name).suffix.lower()
    is_supported = kind in FILE_KINDS and not (compression and kind == ".parquet")
    return (kind if is_supported else "", compression)


def read_blocks(path: Path, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """Yields the decompressed bytes of a file, or bytes `start` to `end` of an uncompressed file.

    Raises OSError where reading fails, for example at the end of a truncated compressed file.
    """
    _, compression = parse_file_kind(path)
    if compression:
        with pyarrow.input_stream(str(path), compression=compression) as stream:
            while block := stream.read(READ_BLOCK_BYTES):
                yield block
        return
    remaining = path.stat().st_size - start if end is None else end - start
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        while remaining > 0 and (block := file.read(min(READ_BLOCK_BYTES, remaining))):
            remaining -= len(block)
            yield block


def read_line_blocks(path: Path, start: int = 0, end: int | None = None) -> Iterator[list[bytes]]:
    """Yields the lines of a file or byte range, without LF and BOM, one list per block read."""
    pieces: list[bytes] = []  # of an unfinished line; joined once, however long the line is
    for index, block in enumerate(read_blocks(path, start, end)):
        lines = block.split(b"\n")
        if index == 0 and start == 0:
            lines[0] = lines[0].removeprefix(BOM)
        pieces.append(lines[0])
        if len(lines) > 1:
            lines[0] = b"".join(pieces)
            pieces = [lines.pop()]
            yield lines
    if last := b"".join(pieces):
        yield [last]


def find_line_start(path: Path, position: int) -> int:
    """Returns the offset of the first line that begins at or after `position`, or the file size."""
    offset = position - 1  # the previous byte decides whether a line begins at `position`
    for block in read_blocks(path, offset):
        newline = block.find(b"\n")
        if newline >= 0:
            return offset + newline + 1
        offset += len(block)
    return offset


def count_newlines(path: Path, start: int, end: int) -> int:
    """Returns the number of line ends in bytes [start, end) of a file."""
    return sum(block.count(b"\n") for block in read_blocks(path, start, end))


def read_beginning(path: Path) -> bytes:
    """Returns the first decompressed bytes of a file, at most READ_BLOCK_BYTES; b"" if it is empty."""
    return next(read_blocks(path), b"")
