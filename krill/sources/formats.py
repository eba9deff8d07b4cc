"""The supported file kinds, and functions that read their bytes: in blocks or lines, decompressed."""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

FILE_KINDS = (".jsonl", ".json", ".parquet", ".csv", ".tsv", ".txt")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
"""Suffix after the suffix of the kind → name of the codec in pyarrow and of the command. Parquet has its own."""
SUPPORTED_FORMATS = f"{' '.join(FILE_KINDS)}; all except .parquet also with {' or '.join(COMPRESSIONS)}"

BOM = b"\xef\xbb\xbf"
READ_BLOCK_BYTES = 2**20
"""Bytes per read."""


class UnreadableRecord(NamedTuple):
    """Replaces the text of a record that cannot be read."""

    reason: str
    """The reason that records are counted by; must not contain anything specific to one record."""
    is_intact: bool = False
    """Whether the record itself can be read: it only has no text, for example null."""


TOO_LONG = UnreadableRecord("longer than data.max_record_bytes")


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
        yield from _decompress_blocks(path, compression)
        return
    remaining = path.stat().st_size - start if end is None else end - start
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        while remaining > 0 and (block := file.read(min(READ_BLOCK_BYTES, remaining))):
            remaining -= len(block)
            yield block


def _decompress_blocks(path: Path, compression: str) -> Iterator[bytes]:
    # Python's gzip reads zeros after the data, as the gzip command does; pyarrow's does not.
    open_stream: Any = gzip.open
    if compression != "gzip":
        import pyarrow  # 50 MB that most commands do without

        open_stream = partial(pyarrow.input_stream, compression=compression)
    with open_stream(str(path)) as stream:
        try:
            while block := stream.read(READ_BLOCK_BYTES):
                yield block
        except EOFError as error:
            raise OSError("Truncated gzip data") from error
        except zlib.error as error:
            raise OSError(f"corrupt gzip data: {error}") from error


def read_line_blocks(
    path: Path, start: int = 0, end: int | None = None, max_bytes: int | None = None
) -> Iterator[list[bytes | None]]:
    """Yields the lines of a file or byte range, without LF and BOM, one list per block read.

    A line of more than `max_bytes` bytes is None; at most `max_bytes` bytes of it are held in memory.
    """
    limit = sys.maxsize if max_bytes is None else max_bytes
    pieces: list[bytes] = []  # of an unfinished line; joined once, however long the line is
    size = 0  # of the unfinished line
    for index, block in enumerate(read_blocks(path, start, end)):
        lines: list[Any] = block.split(b"\n")
        if index == 0 and start == 0:
            lines[0] = lines[0].removeprefix(BOM)
        size += len(lines[0])
        if size <= limit:
            pieces.append(lines[0])
        else:
            pieces.clear()
        if len(lines) > 1:
            lines[0] = b"".join(pieces) if size <= limit else None
            size, pieces = len(lines[-1]), [lines.pop()]
            if len(block) > limit:
                lines = [line if line is None or len(line) <= limit else None for line in lines]
            yield lines
    if size > limit:
        yield [None]
    elif size:
        yield [b"".join(pieces)]


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
    beginning = bytearray()
    for block in read_blocks(path):
        beginning += block
        if len(beginning) >= READ_BLOCK_BYTES:
            break
    return bytes(beginning[:READ_BLOCK_BYTES])


def is_longer(text: str, max_bytes: int) -> bool:
    """Returns whether the UTF-8 of a text is longer than `max_bytes`."""
    return 4 * len(text) > max_bytes and len(text.encode("utf-8", "surrogatepass")) > max_bytes
