"""JSON files that contain a checksum of themselves: a changed bit or a lost end is noticed when they are read.

{
  …,
  "checksum": "<xxh3_128 of the file with an empty checksum>"
}
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import xxhash

from krill.atomic import format_json, write_text

_END_OF_FILE = '""\n}\n'


class ChecksumError(ValueError):
    """A file is not what was written: it is damaged or edited, or was written without a checksum."""


def write_checksummed_json(path: Path, value: dict[str, Any]) -> None:
    """Writes `value` as JSON with a checksum, atomically. Raises ValueError for NaN and infinity."""
    write_text(path, _format_with_checksum(value))


def read_checksummed_json(path: Path) -> dict[str, Any]:
    """Returns what `write_checksummed_json` wrote; raises ChecksumError if a single bit of the file differs."""
    try:
        text = path.read_bytes().decode()
        value: dict[str, Any] = json.loads(text)
        del value["checksum"]
        if _format_with_checksum(value) == text:
            return value
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ChecksumError(f"{path} is damaged, or has no checksum") from error
    raise ChecksumError(f"{path} has changed since it was written")


def _format_with_checksum(value: dict[str, Any]) -> str:
    text = format_json({**value, "checksum": ""})
    digest = xxhash.xxh3_128_hexdigest(text.encode())
    return f'{text.removesuffix(_END_OF_FILE)}"{digest}"\n}}\n'
