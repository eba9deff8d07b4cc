"""Saves checkpoints atomically, verifies them before a run resumes from them, and deletes the oldest.

checkpoints/checkpoint-100/     weights, optimizer, schedule, RNG, trainer state
    manifest.json               the step, size and xxh3_128 of each file, and a checksum of all of it; written last
checkpoints/.partial/           a checkpoint that is being saved or deleted
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from krill import atomic, manifest
from krill.config.paths import relative_path
from krill.config.signature import hash_file
from krill.errors import DISK_FULL_ERRNOS, KrillError

PARTIAL_FOLDER = ".partial"
_NAME_PATTERN = re.compile(r"checkpoint-(0|[1-9][0-9]*)")
log = logging.getLogger("krill")


def list_checkpoints(folder: Path) -> list[Path]:
    """Lists the checkpoints in a run's checkpoints/ folder, oldest first; their contents are not verified."""
    return sorted(
        (path for path in folder.glob("checkpoint-*") if _NAME_PATTERN.fullmatch(path.name)), key=parse_step
    )


def parse_step(checkpoint: Path) -> int:
    """Returns the optimizer step after which a checkpoint was saved."""
    return int(checkpoint.name.rpartition("-")[2])


# --- saving ------------------------------------------------------------------------------------------------


@contextmanager
def staged_checkpoint(folder: Path) -> Iterator[Path]:
    """Yields a hidden folder to save into; when the block ends, its checkpoints get a manifest and their final name.

    Files of a failed save are removed. Raises KrillError if the disk is full.
    """
    partial = folder / PARTIAL_FOLDER
    remove_partial(folder)
    try:
        partial.mkdir(parents=True)
        yield partial
        for checkpoint in list(partial.iterdir()):
            atomic.apply_umask(checkpoint)
            write_checkpoint_manifest(checkpoint)
            _fsync_files(checkpoint)
            _move_into_place(checkpoint, folder / checkpoint.name)
    except BaseException as error:
        free = shutil.disk_usage(folder).free if folder.exists() else 0
        remove_partial(folder)
        if not _is_disk_full(error):
            raise
        raise KrillError(
            f"{relative_path(folder)}: not enough space for another checkpoint ({free / 1e6:,.1f} MB were free): "
            f"{error}. The partial checkpoint was removed, earlier ones were kept. Free some space "
            "(keep_checkpoints= and keep_best= set how many are kept) and run the same command to resume"
        ) from error
    remove_partial(folder)


def remove_partial(folder: Path) -> None:
    """Removes the remains of an interrupted save or deletion."""
    if (folder / PARTIAL_FOLDER).exists():
        shutil.rmtree(folder / PARTIAL_FOLDER)


def write_checkpoint_manifest(checkpoint: Path) -> None:
    """Writes the manifest of a checkpoint whose files are complete."""
    files = manifest.list_files(checkpoint)
    manifest.write_file_manifest(
        checkpoint / manifest.CHECKPOINT_MANIFEST, checkpoint, files, step=parse_step(checkpoint)
    )


def _fsync_files(checkpoint: Path) -> None:
    """Flushes every file and folder to the disk, so that a power failure cannot leave an empty one."""
    for path in (*checkpoint.rglob("*"), checkpoint):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _move_into_place(checkpoint: Path, final: Path) -> None:
    """Renames a checkpoint; an existing one of the same step is moved away first, so that neither is ever partial."""
    if final.exists():
        os.replace(final, checkpoint.with_name(f"old-{final.name}"))
    os.replace(checkpoint, final)


def _is_disk_full(error: BaseException) -> bool:
    """Returns whether a write failed because of the limit of the disk, the quota or the file size.

    safetensors reports the error number in its message only, and torch.save reports none: the writer of its archive
    (inline_container) reports an unexpected position, or in the last bytes of the archive a bad stream.
    """
    if isinstance(error, OSError):
        return error.errno in DISK_FULL_ERRNOS
    text = str(error)
    signs = (*(f"(os error {number})" for number in DISK_FULL_ERRNOS), "inline_container", "iostream error")
    return any(sign in text for sign in signs)


# --- resume ------------------------------------------------------------------------------------------------


def find_newest_valid(folder: Path) -> tuple[Path | None, list[Path]]:
    """Returns the newest valid checkpoint, and the corrupt ones that were skipped; these are logged and kept.

    Raises KrillError if there are checkpoints and none of them is valid: starting from scratch without being asked
    to would discard the work (verl #7952).
    """
    if (folder / PARTIAL_FOLDER).exists():
        log.info("checkpoint  removing an interrupted save: %s", relative_path(folder / PARTIAL_FOLDER))
        remove_partial(folder)
    numbered = list_checkpoints(folder)
    others = [path for path in folder.glob("checkpoint-*") if path not in numbered]
    corrupt: list[Path] = []
    for checkpoint in (*reversed(numbered), *others):
        problems = verify(checkpoint)
        if not problems:
            return checkpoint, corrupt
        for line in problems:
            log.warning("skipping corrupt checkpoint: %s", line)
        corrupt.append(checkpoint)
    if corrupt:
        raise KrillError(
            f"{relative_path(folder)}: none of the checkpoints is valid, so the run cannot resume. Restore a copy of "
            "one, or set resume=false to start from scratch in a new folder (with another output=, if it is set)"
        )
    return None, corrupt


def verify(checkpoint: Path, check_hashes: bool = True) -> list[str]:
    """Returns the problems of a checkpoint, one line per file; empty if it is complete and unchanged.

    With `check_hashes`, all files are read and hashed; without it, only their sizes are compared.
    """
    recorded = manifest.read_file_manifest(checkpoint / manifest.CHECKPOINT_MANIFEST)
    if isinstance(recorded, str):
        return [f"{relative_path(checkpoint / manifest.CHECKPOINT_MANIFEST)} {recorded}"]
    name = f"checkpoint-{recorded['step']}"
    if checkpoint.name != name:
        return [
            f"{relative_path(checkpoint)} was saved at step {recorded['step']}; rename it to {name} to resume from it"
        ]
    problems = (
        (file, manifest.verify_file(checkpoint / file, entry, hash_file if check_hashes else None))
        for file, entry in recorded["files"].items()
    )
    return [f"{relative_path(checkpoint / file)} {problem}" for file, problem in problems if problem]


# --- retention ---------------------------------------------------------------------------------------------


def complete_checkpoints(folder: Path, corrupt: Collection[Path] = ()) -> list[Path]:
    """Returns the checkpoints with all files at their sizes, without those in `corrupt`; oldest first."""
    return [
        path
        for path in list_checkpoints(folder)
        if path not in corrupt and not verify(path, check_hashes=False)
    ]


def rotate_checkpoints(
    folder: Path, keep: int, keep_steps: Collection[int] = (), corrupt: Collection[Path] = ()
) -> None:
    """Deletes all complete checkpoints except the newest `keep` and those of the steps `keep_steps`.

    Call it after a save, which has hashed the newest. Corrupt checkpoints are neither counted nor deleted.
    """
    for checkpoint in complete_checkpoints(folder, corrupt)[:-keep]:
        if parse_step(checkpoint) not in keep_steps:
            partial = folder / PARTIAL_FOLDER
            partial.mkdir(exist_ok=True)
            # First, so that an interrupted deletion leaves no partial checkpoint.
            os.replace(checkpoint, partial / checkpoint.name)
            remove_partial(folder)
