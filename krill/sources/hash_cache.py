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
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import xxhash

from krill.atomic import write_json
from krill.config.paths import get_outputs_root
from krill.config.signature import hash_file
from krill.resources import count_cpu_cores

MIN_CACHED_BYTES = 2**23
"""Smaller files are hashed as fast as a kept hash is found (5 GB/s)."""
MIN_FILE_AGE_NS = 2 * 10**9
"""Nanoseconds without a change before a hash is kept: longer than the tick of any file system's clock."""
HASH_THREADS = 8
"""xxhash lets other threads run: two hash twice as fast, from a network's disk more."""


def hash_files_cached(paths: list[Path], is_read_only: bool = False) -> list[str]:
    """Returns the hex xxh3_128 of each file's bytes. Raises OSError for a file that cannot be read.

    `is_read_only`: use hashes of the cache but write none, as in a dry run.
    """
    hash_one = partial(hash_file_cached, is_read_only=is_read_only)
    threads = min(HASH_THREADS, count_cpu_cores(), len(paths))
    if threads < 2:
        return [hash_one(path) for path in paths]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(hash_one, paths))


def hash_file_cached(path: Path, is_read_only: bool = False) -> str:
    """Returns the hex xxh3_128 of a file's bytes; see `hash_files_cached`."""
    began, status = time.time_ns(), os.stat(path)
    if status.st_size < MIN_CACHED_BYTES:
        return hash_file(path)
    place, state = _get_entry_path(path), _get_file_state(status)
    kept = _read_entry(place)
    if kept.get("state") == state and isinstance(kept.get("xxh3_128"), str):
        return kept["xxh3_128"]
    digest = hash_file(path)
    left_alone = status.st_ctime_ns < began - MIN_FILE_AGE_NS and _get_file_state(os.stat(path)) == state
    if not is_read_only and left_alone and get_outputs_root().is_dir():
        with contextlib.suppress(OSError):  # a folder that is read only keeps no hashes
            place.parent.mkdir(parents=True, exist_ok=True)
            write_json(place, {"path": str(path.absolute()), "state": state, "xxh3_128": digest})
    return digest


def _get_entry_path(path: Path) -> Path:
    name = xxhash.xxh3_128_hexdigest(os.fsencode(path.absolute()))
    return get_outputs_root() / ".cache" / "digests" / f"{name}.json"


def _get_file_state(status: os.stat_result) -> dict[str, int]:
    """What changes with a file's content."""
    return {
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,
        "inode": status.st_ino,
        "device": status.st_dev,
    }


def _read_entry(place: Path) -> dict[str, Any]:
    """What was kept; {} if nothing, or nothing that can be read."""
    try:
        kept = json.loads(place.read_bytes())
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}
