"""The kinds of files that krill reads, and their bytes: in blocks, in lines, decompressed on the way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow

FILE_KINDS = (".jsonl", ".json", ".parquet", ".csv", ".tsv", ".txt")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
"""Suffix behind that of the kind → its name in pyarrow. Parquet compresses by itself."""
SUPPORTED_FORMATS = f"{' '.join(FILE_KINDS)}, each but .parquet also with {' or '.join(COMPRESSIONS)}"

BOM = b"\xef\xbb\xbf"
READ_BLOCK_BYTES = 2**20
"""Bytes that are read at once."""


class UnreadableRecord(NamedTuple):
    """Stands where a text was expected."""

    reason: str
    """Counted by it; nothing that differs from record to record."""


def parse_file_kind(path: Path) -> tuple[str, str | None]:
    """(kind, compression) by the name: a.jsonl.gz → (".jsonl", "gzip"); the kind is "" if krill reads none."""
    compression = COMPRESSIONS.get(path.suffix.lower())
    kind = Path(path.stem if compression else path.name).suffix.lower()
    known = kind in FILE_KINDS and not (compression and kind == ".parquet")
    return (kind if known else "", compression)


def read_blocks(path: Path, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """Yield the bytes of a file, decompressed, or bytes `start` to `end` of one that is not compressed.

    Raises OSError where it cannot be read on: a compressed file that was cut, say.
    """
    _, compression = parse_file_kind(path)
    if compression:
        with pyarrow.input_stream(str(path), compression=compression) as stream:
            while block := stream.read(READ_BLOCK_BYTES):
                yield block
        return
    left = path.stat().st_size - start if end is None else end - start
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        while left > 0 and (block := file.read(min(READ_BLOCK_BYTES, left))):
            left -= len(block)
            yield block


def read_line_blocks(path: Path, start: int = 0, end: int | None = None) -> Iterator[list[bytes]]:
    """Yield the lines of a file, or of a byte range of it, without their LF and without a BOM: a block's at once."""
    begun: list[bytes] = []  # pieces of a line that goes on: joined once, however long it is
    for index, block in enumerate(read_blocks(path, start, end)):
        found = block.split(b"\n")
        if index == 0 and start == 0:
            found[0] = found[0].removeprefix(BOM)
        begun.append(found[0])
        if len(found) > 1:
            found[0] = b"".join(begun)
            begun = [found.pop()]
            yield found
    if last := b"".join(begun):
        yield [last]


def find_line_start(path: Path, position: int) -> int:
    """The first byte at or behind `position` with which a line begins; the file's size if there is none."""
    at = position - 1  # the byte before decides whether `position` itself begins a line
    for block in read_blocks(path, at):
        found = block.find(b"\n")
        if found >= 0:
            return at + found + 1
        at += len(block)
    return at


def count_newlines(path: Path, start: int, end: int) -> int:
    """How many lines end between two bytes of a file."""
    return sum(block.count(b"\n") for block in read_blocks(path, start, end))


def read_beginning(path: Path) -> bytes:
    """The first bytes of the file's content, decompressed, at most BLOCK; b"" if there are none."""
    return next(read_blocks(path), b"")
