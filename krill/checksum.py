"""Files that contain a checksum of themselves: a changed bit or a lost end is noticed when they are read.

JSON has it in the last entry, text in the first line, which is a comment in YAML:

{                                             # xxh3_128 <of the text below>
  …,                                          …
  "checksum": "<xxh3_128 of the file with
               an empty checksum>"
}

Files of earlier versions have none, or another one. A file that lost its checksum by damage is not taken for one of
those: its digest is still there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash

from krill.atomic import format_json, write_text

_END_OF_JSON = '"\n}\n'
_DIGEST_AT_END = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}" + re.escape(_END_OF_JSON) + r"\Z")
_DIGEST_NAME = "xxh3_128"


class ChecksumError(ValueError):
    """A file is not what was written: it is damaged or edited, or was written without a checksum."""

    def __init__(self, path: Path, reason: object):
        self.problem = f"is damaged ({' '.join(str(reason).split())})"
        super().__init__(f"{path} {self.problem}")


def write_checksummed_json(path: Path, value: dict[str, Any], mode: int = 0o666) -> None:
    """Writes `value` as JSON with a checksum, atomically. Raises ValueError for NaN and infinity."""
    write_text(path, format_checksummed_json(value), mode)


def format_checksummed_json(value: dict[str, Any]) -> str:
    """Returns the text that `write_checksummed_json` writes."""
    return _fill_in_checksum(format_json({**value, "checksum": ""}))


def read_checksummed_json(
    path: Path, is_valid_earlier: Callable[[dict[str, Any]], bool] | None = None
) -> dict[str, Any]:
    """Returns what `write_checksummed_json` wrote; raises ChecksumError if a single bit of the file differs.

    `is_valid_earlier`: called for an object as earlier versions wrote it, without this checksum; returns whether it
    is intact. None: there are no such files.
    """
    try:
        text = path.read_bytes().decode()
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ChecksumError(path, error) from error
    if not isinstance(value, dict):
        raise ChecksumError(path, "it has no keys")
    digest = value.get("checksum")
    if isinstance(digest, str) or _DIGEST_AT_END.search(text) or is_valid_earlier is None:
        unsigned = text.removesuffix(f"{digest}{_END_OF_JSON}") + _END_OF_JSON
        is_valid = isinstance(digest, str) and text == _fill_in_checksum(unsigned)
        value.pop("checksum", None)
    else:
        is_valid = is_valid_earlier(value)
    if not is_valid:
        raise ChecksumError(path, "it has changed since it was written")
    return value


def has_no_checksum(value: dict[str, Any]) -> bool:
    """Returns whether an object is as earlier versions wrote it; an `is_valid_earlier` of `read_checksummed_json`."""
    return "checksum" not in value


def _fill_in_checksum(text: str) -> str:
    """Returns JSON text, which ends with an empty checksum, with its checksum."""
    return text.removesuffix(_END_OF_JSON) + _compute_digest(text) + _END_OF_JSON


def write_checksummed_text(path: Path, text: str) -> None:
    """Writes `text` below a comment with its checksum, atomically."""
    write_text(path, f"# {_DIGEST_NAME} {_compute_digest(text)}\n{text}")


def read_checksummed_text(path: Path) -> str:
    """Returns what `write_checksummed_text` wrote, or the text of a file without a checksum.

    Raises ChecksumError for a file with a checksum of another text, or that is not UTF-8.
    """
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ChecksumError(path, error) from error
    comment, _, rest = text.partition("\n")
    if _DIGEST_NAME not in comment:
        return text
    if comment != f"# {_DIGEST_NAME} {_compute_digest(rest)}":
        raise ChecksumError(path, "it has changed since it was written")
    return rest


def _compute_digest(text: str) -> str:
    return xxhash.xxh3_128_hexdigest(text.encode())
