"""Nothing half-written is ever visible under its final name."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from krill.errors import UsageError

log = logging.getLogger("krill")


def write_text(path: Path, text: str) -> None:
    """Write `text` (UTF-8) so that a reader sees the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def make_once(folder: Path, make: Callable[[Path], None], resumes: bool = False) -> bool:
    """Make `folder` by calling `make` on a hidden folder beside it, then rename; False: it was there.

    Processes that want the same folder wait for the one that makes it (a file lock, which the kernel
    gives up when its holder dies). What a killed maker left behind is removed first, unless `make` resumes:
    then it finds it there, and what it has made stays after a failure, too (but for a UsageError: with other
    input it would be of no use). An empty folder counts as none.
    """
    if is_nonempty_folder(folder):
        return False
    if folder.exists() and not folder.is_dir():  # told now, not when all is made
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _acquire_lock(FileLock(folder.with_name(f".{folder.name}.lock")), folder):
        if is_nonempty_folder(folder):
            return False
        partial = partial_folder(folder)
        if partial.exists() and not resumes:
            shutil.rmtree(partial)
        partial.mkdir(exist_ok=True)
        try:
            with name_folder_in_errors(partial):
                make(partial)
        except BaseException as error:
            if not resumes or isinstance(error, UsageError):
                shutil.rmtree(partial, ignore_errors=True)
            raise
        os.replace(partial, folder)
    return True


def create_first_free(parent: Path, names: Iterable[str]) -> Path:
    """Make the first of these folders that is not there yet; of several processes each gets one of its own."""
    for name in names:
        with suppress(FileExistsError):
            (parent / name).mkdir(parents=True)
            return parent / name
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(parent))


def create_timestamped_folder(parent: Path, name: str) -> Path:
    """Make <time>-<name>; of the same second <time>-<name>-2 and so on."""
    stem = f"{datetime.now():%Y-%m-%d_%H-%M-%S}-{name}"
    return create_first_free(parent, chain([stem], (f"{stem}-{attempt}" for attempt in range(2, 1000))))


@contextmanager
def name_folder_in_errors(folder: Path) -> Iterator[None]:
    """That no space is left says `folder`: a write does not know its file's name."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and error.filename is None:
            error.filename = str(folder)
        raise


def _acquire_lock(lock: FileLock, folder: Path) -> AbstractContextManager[Any]:
    """The lock, acquired until the context ends; says so where it has to be waited for."""
    try:
        return lock.acquire(blocking=False)
    except Timeout:
        log.info("waiting for another process that makes %s", folder)
        return lock.acquire()


def is_nonempty_folder(folder: Path) -> bool:
    """Whether a folder is there and not empty."""
    return folder.is_dir() and any(folder.iterdir())


def partial_folder(folder: Path) -> Path:
    """Where `folder` is while it is made."""
    return folder.with_name(f".{folder.name}.partial")
