"""Caches the hashes of large files on disk, so that an unchanged file is not read again by each command.

outputs/.cache/digests/<hash of the path>.json

An entry is valid while size, times, inode and device are unchanged; a damaged one is ignored. It is stored only for a
file that had not changed for two seconds: a change within one tick of the clock would not be visible (git calls such
entries racy).
"""

from __future__ import annotations

import contextlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import xxhash

from krill.checksum import ChecksumError, read_checksummed_json, write_checksummed_json
from krill.config.paths import get_outputs_root
from krill.config.signature import hash_file
from krill.resources import count_cpu_cores

MIN_CACHED_BYTES = 2**23
"""Hashing a smaller file takes no longer than reading its entry (5 GB/s)."""
MIN_FILE_AGE_NS = 2 * 10**9
"""Nanoseconds without a change before a hash is stored: longer than the tick of any file system's clock."""
HASH_THREADS = 8
"""xxhash releases Python's lock: two threads hash twice as fast, on a network file system more."""


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
    start_ns, status = time.time_ns(), os.stat(path)
    if status.st_size < MIN_CACHED_BYTES:
        return hash_file(path)
    entry_path, state = _get_entry_path(path), get_file_state(status)
    with contextlib.suppress(OSError, ChecksumError):  # none yet, or damaged
        entry = read_checksummed_json(entry_path)
        if entry["state"] == state:
            return entry["xxh3_128"]
    digest = hash_file(path)
    was_unchanged = status.st_ctime_ns < start_ns - MIN_FILE_AGE_NS and get_file_state(os.stat(path)) == state
    if not is_read_only and was_unchanged and get_outputs_root().is_dir():
        with contextlib.suppress(OSError):  # a read-only folder stores no hashes
            entry_path.parent.mkdir(parents=True, exist_ok=True)
            write_checksummed_json(
                entry_path, {"path": str(path.absolute()), "state": state, "xxh3_128": digest}
            )
    return digest


def _get_entry_path(path: Path) -> Path:
    name = xxhash.xxh3_128_hexdigest(os.fsencode(path.absolute()))
    return get_outputs_root() / ".cache" / "digests" / f"{name}.json"


def get_file_state(status: os.stat_result) -> dict[str, int]:
    """Returns the attributes that change when the content does."""
    return {
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,
        "inode": status.st_ino,
        "device": status.st_dev,
    }
