"""Hashes of files' contents, kept on disk: a large file that has not changed is hashed once, not once a command.

outputs/.cache/digests/<hash of the path>.json

A hash counts while size, times, inode and device are what they were. It is kept only of a file that had been
left alone for a while when hashing began: a change within the same tick of the clock would not show
(git calls such entries racy).
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xxhash

from krill.atomic import write_json
from krill.config.location import outputs_root
from krill.config.signature import file_digest

KEPT_BYTES = 2**23
"""Smaller files are hashed as fast as a kept hash is found (5 GB/s)."""
QUIET_NS = 2 * 10**9
"""Nanoseconds without a change before a hash is kept: longer than the tick of any file system's clock."""
THREADS = 8
"""xxhash lets other threads run: two hash twice as fast, from a network's disk more."""


_keeps = True


@contextlib.contextmanager
def none_kept() -> Iterator[None]:
    """Meanwhile hashes are used but not kept: a dry run writes nothing."""
    global _keeps
    before, _keeps = _keeps, False
    try:
        yield
    finally:
        _keeps = before


def content_digests(paths: list[Path]) -> list[str]:
    """Hex xxh3_128 of each file's bytes. Raises OSError for a file that cannot be read."""
    threads = min(THREADS, os.cpu_count() or 1, len(paths))
    if threads < 2:
        return [content_digest(path) for path in paths]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(content_digest, paths))


def content_digest(path: Path) -> str:
    """Hex xxh3_128 of a file's bytes. Raises OSError if it cannot be read."""
    began, status = time.time_ns(), os.stat(path)
    if status.st_size < KEPT_BYTES:
        return file_digest(path)
    place, state = _place(path), _state(status)
    kept = _kept(place)
    if kept.get("state") == state and isinstance(kept.get("xxh3_128"), str):
        return kept["xxh3_128"]
    digest = file_digest(path)
    left_alone = status.st_ctime_ns < began - QUIET_NS and _state(os.stat(path)) == state
    if _keeps and left_alone and outputs_root().is_dir():
        with contextlib.suppress(OSError):  # a folder that is read only keeps no hashes
            place.parent.mkdir(parents=True, exist_ok=True)
            write_json(place, {"path": str(path.absolute()), "state": state, "xxh3_128": digest})
    return digest


def _place(path: Path) -> Path:
    name = xxhash.xxh3_128_hexdigest(os.fsencode(path.absolute()))
    return outputs_root() / ".cache" / "digests" / f"{name}.json"


def _state(status: os.stat_result) -> dict[str, int]:
    """What changes with a file's content."""
    return {
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,
        "inode": status.st_ino,
        "device": status.st_dev,
    }


def _kept(place: Path) -> dict[str, Any]:
    """What was kept; {} if nothing, or nothing that can be read."""
    try:
        kept = json.loads(place.read_bytes())
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}
