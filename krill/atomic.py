"""Writes files and folders atomically: partial content is never visible under the final name."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import datetime
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from krill.errors import DISK_FULL_ERRNOS, UsageError

log = logging.getLogger("krill")


def write_text(path: Path, text: str, mode: int = 0o666) -> None:
    """Writes `text` as UTF-8; a reader sees the old file or the new one, never a part of it.

    `mode`: of the new file, less the umask.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with (
            name_folder_in_errors(path.parent),
            open(temporary, "w", encoding="utf-8", opener=partial(os.open, mode=mode)) as file,
        ):
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any, mode: int = 0o666) -> None:
    """Writes `value` as indented JSON, atomically. Raises ValueError for NaN and infinity."""
    write_text(path, format_json(value), mode)


def format_json(value: Any) -> str:
    """Returns `value` as the text of an indented JSON file. Raises ValueError for NaN and infinity."""
    return json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def apply_umask(folder: Path) -> None:
    """Gives the files in `folder` the mode that a new file there gets; safetensors writes its files with mode 600."""
    probe = folder / ".umask.partial"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def make_once(folder: Path, build: Callable[[Path], None], resume: bool = False) -> bool:
    """Creates `folder` by `build(partial)` on a hidden folder beside it, which is then renamed.

    Returns False if `folder` exists and is not empty. Other processes that need the same folder wait (for a file
    lock, which the kernel releases when its holder dies). The partial folder of a killed process is removed first,
    unless `resume` is set: then `build` continues in it, and it is also kept after an error (other than UsageError,
    after which it would be of no use). Raises NotADirectoryError if `folder` is a file, UsageError if it is a mount
    point.
    """
    if is_nonempty_folder(folder):
        return False
    if folder.exists() and not folder.is_dir():  # raised now, not after `build`
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    if os.path.ismount(folder):
        raise _build_mount_error(folder)
    create_folder(folder.parent)
    with _acquire_lock(FileLock(folder.with_name(f".{folder.name}.lock")), folder):
        if is_nonempty_folder(folder):
            return False
        partial = get_partial_folder(folder)
        if partial.exists() and not resume:
            shutil.rmtree(partial)
        partial.mkdir(exist_ok=True)
        try:
            with name_folder_in_errors(partial):
                build(partial)
            _rename_folder(partial, folder)
        except BaseException as error:
            if not resume or isinstance(error, UsageError):
                shutil.rmtree(partial, ignore_errors=True)
            raise
    return True


def _rename_folder(partial: Path, folder: Path) -> None:
    try:
        os.replace(partial, folder)
    except OSError as error:
        if error.errno == errno.EBUSY:  # a mount point of the same disk
            raise _build_mount_error(folder) from error
        raise


def _build_mount_error(folder: Path) -> UsageError:
    return UsageError(
        f"{folder} is a mount point, which no complete folder can replace; use a folder in it, such as "
        f"{folder / 'result'}"
    )


def make_file_once(path: Path, write: Callable[[Path], None]) -> bool:
    """Creates the file `path` by `write(partial)` on a hidden file beside it, which is then renamed.

    Returns False if there is something at `path`. Other processes that need the same file wait, as in `make_once`;
    the partial file of a killed process is replaced.
    """
    create_folder(path.parent)
    with _acquire_lock(FileLock(path.with_name(f".{path.name}.lock")), path):
        if path.exists():
            return False
        partial = get_partial_folder(path)
        try:
            with name_folder_in_errors(path.parent):
                write(partial)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    return True


def create_folder(folder: Path, exist_ok: bool = True) -> None:
    """Creates a folder and its parents. Raises UsageError where the system keeps no files, as in /proc and /sys."""
    try:
        folder.mkdir(parents=True, exist_ok=exist_ok)
    except FileNotFoundError as error:
        raise _build_no_files_error(folder) from error


def _build_no_files_error(path: Path) -> UsageError:
    return UsageError(
        f"{path} cannot be created: the system keeps no files there; set output= or KRILL_OUTPUTS to another folder"
    )


def create_first_free(parent: Path, names: Iterable[str]) -> Path:
    """Creates and returns the first of these folders that does not exist; each process gets a different one."""
    for name in names:
        with suppress(FileExistsError):
            create_folder(parent / name, exist_ok=False)
            return parent / name
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(parent))


def create_timestamped_folder(parent: Path, name: str) -> Path:
    """Creates and returns <time>-<name>, or <time>-<name>-2 and so on within the same second."""
    stem = f"{datetime.now():%Y-%m-%d_%H-%M-%S}-{name}"
    return create_first_free(parent, chain([stem], (f"{stem}-{attempt}" for attempt in range(2, 1000))))


@contextmanager
def name_folder_in_errors(folder: Path) -> Iterator[None]:
    """Adds `folder` to errors of a full disk, which do not name a file if they are raised by a write."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL_ERRNOS and error.filename is None:
            error.filename = str(folder)
        raise


def _acquire_lock(lock: FileLock, folder: Path) -> AbstractContextManager[Any]:
    """Acquires the lock until the context ends; logs if it has to wait."""
    try:
        Path(lock.lock_file).touch()  # FileLock would wait forever for a file that cannot be created
    except FileNotFoundError as error:
        raise _build_no_files_error(folder) from error
    try:
        return lock.acquire(blocking=False)
    except Timeout:
        log.info("waiting     for another process that is creating %s", folder)
        return lock.acquire()


def is_nonempty_folder(folder: Path) -> bool:
    """Returns whether `folder` is a folder that is not empty."""
    return folder.is_dir() and any(folder.iterdir())


def get_partial_folder(folder: Path) -> Path:
    """Returns the folder in which `make_once` builds `folder`."""
    return folder.with_name(f".{folder.name}.partial")
