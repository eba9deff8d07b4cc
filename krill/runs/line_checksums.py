"""Checksums of the lines of a JSON lines file, beside it: a changed line is noticed and named, and so is a lost end.

metrics.jsonl               {"step": 1, …}
.metrics.jsonl.checksums    one line for each line of it: the offset of its end in bytes, and its xxh3_64

A line is written before its checksum: after a kill the last line may have none, but a checksum without its line means
that lines were lost. A file of an earlier version has no checksums, and is not verified.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import xxhash

from krill import atomic

_ENTRY = re.compile(rb"([1-9][0-9]{0,17}) ([0-9a-f]{16})")
_MAX_ENTRY_BYTES = 36


def get_checksum_file(file: Path) -> Path:
    """Returns the path of the checksums of a JSON lines file."""
    return file.with_name(f".{file.name}.checksums")


class LineChecksums:
    """The checksums of a file, read before the file itself, which its writer extends first."""

    def __init__(self, file: Path, last_lines: int | None = None):
        """`last_lines`: reads the checksums of at least that many lines at the end; None: of all."""
        self._digests: dict[int, bytes] = {}
        try:
            with open(get_checksum_file(file), "rb") as content:
                if last_lines is not None:
                    size = content.seek(0, os.SEEK_END)
                    content.seek(max(0, size - last_lines * _MAX_ENTRY_BYTES))
                for match in map(_ENTRY.fullmatch, content.read().split(b"\n")):
                    if match:
                        self._digests[int(match[1])] = match[2]
        except OSError:  # a run of an earlier version
            return

    def is_valid(self, line: bytes, end: int) -> bool:
        """Returns whether a line that ends at offset `end`, without its line feed, is as it was written."""
        return self._digests.get(end) in (None, _compute_digest(line))

    def has_lost_lines(self, size: int) -> bool:
        """Returns whether a file of `size` bytes has lost its end."""
        return max(self._digests, default=0) > size


def write_checksums(file: Path, lines: list[bytes]) -> None:
    """Writes the checksums of a file that is about to get these `lines`."""
    entries, end = [], 0
    for line in lines:
        end += len(line) + 1
        entries.append(_format_entry(line, end))
    atomic.write_text(get_checksum_file(file), "".join(entries))


def append_checksum(file: Path, line: bytes, end: int) -> None:
    """Appends the checksum of a line that was appended to a file and ends at offset `end`."""
    with open(get_checksum_file(file), "a") as checksums:
        checksums.write(_format_entry(line, end))


def _format_entry(line: bytes, end: int) -> str:
    return f"{end} {_compute_digest(line).decode()}\n"


def _compute_digest(line: bytes) -> bytes:
    return xxhash.xxh3_64_hexdigest(line).encode()
