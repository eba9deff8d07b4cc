"""Checkpoints appear whole or not at all, prove what they hold before a run goes on from them, and the oldest go.

checkpoints/checkpoint-100/     weights, optimizer, schedule, RNG, trainer state
    manifest.json               the step, bytes and xxh3_128 of each file, and a signature of all that; written last
checkpoints/.partial/           one that is being saved, or deleted
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from krill import atomic
from krill.config.signature import compute_signature, hash_file
from krill.errors import KrillError
from krill.runs.record import relative_path

PARTIAL_FOLDER = ".partial"
MANIFEST = "manifest.json"
MANIFEST_FORMAT = 1
_NAME_PATTERN = re.compile(r"checkpoint-(0|[1-9][0-9]*)")
_DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
log = logging.getLogger("krill")


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run's checkpoints/ folder by their names, oldest first."""
    return sorted(
        (path for path in folder.glob("checkpoint-*") if _NAME_PATTERN.fullmatch(path.name)), key=parse_step
    )


def parse_step(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was saved."""
    return int(checkpoint.name.rpartition("-")[2])


# --- saving ------------------------------------------------------------------------------------------------


@contextmanager
def staged_checkpoint(folder: Path) -> Iterator[Path]:
    """A hidden folder to save into; what stands in it when the block ends gets its manifest and its final name.

    What a failed save has written is removed. Raises KrillError where there was no room for it.
    """
    partial = folder / PARTIAL_FOLDER
    remove_partial(folder)
    try:
        partial.mkdir(parents=True)
        yield partial
        for checkpoint in list(partial.iterdir()):
            write_checkpoint_manifest(checkpoint)
            _fsync_files(checkpoint)
            _move_into_place(checkpoint, folder / checkpoint.name)
    except BaseException as error:
        free = shutil.disk_usage(folder).free if folder.exists() else 0
        remove_partial(folder)
        if not _is_disk_full(error):
            raise
        raise KrillError(
            f"{relative_path(folder)}: no room for another checkpoint ({free / 1e6:,.1f} MB were free): {error}. Its half is "
            "removed, what was saved before stays; make room there (keep_checkpoints= and keep_best= say how many "
            "are kept), then the same command goes on"
        ) from error
    remove_partial(folder)


def remove_partial(folder: Path) -> None:
    """Remove what a save, or a deletion, that was cut off has left."""
    if (folder / PARTIAL_FOLDER).exists():
        shutil.rmtree(folder / PARTIAL_FOLDER)


def write_checkpoint_manifest(checkpoint: Path) -> None:
    """Write the manifest of a checkpoint whose files are all there. They are read back: mostly from memory."""
    files = {
        file.relative_to(checkpoint).as_posix(): {"bytes": file.stat().st_size, "xxh3_128": hash_file(file)}
        for file in sorted(checkpoint.rglob("*"))
        if file.is_file()
    }
    manifest = {"format": MANIFEST_FORMAT, "step": parse_step(checkpoint), "files": files}
    atomic.write_json(checkpoint / MANIFEST, manifest | {"signature": compute_signature(manifest)})


def _fsync_files(checkpoint: Path) -> None:
    """Bring every file and folder to the disk, so that a power cut cannot leave an empty one behind."""
    for path in (*checkpoint.rglob("*"), checkpoint):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _move_into_place(checkpoint: Path, final: Path) -> None:
    """Rename it; one of the same step steps aside first, so that neither is ever there by half."""
    if final.exists():
        os.replace(final, checkpoint.with_name(f"old-{final.name}"))
    os.replace(checkpoint, final)


def _is_disk_full(error: BaseException) -> bool:
    """Whether a write failed because the disk, the quota or the file's size is at its limit.

    safetensors tells the number in its message only, and torch.save tells none: the writer of its archive
    (inline_container) says that a position is not the expected one, and in the last bytes of it only that a stream is
    bad.
    """
    if isinstance(error, OSError):
        return error.errno in _DISK_FULL_ERRNOS
    text = str(error)
    signs = (*(f"(os error {number})" for number in _DISK_FULL_ERRNOS), "inline_container", "iostream error")
    return any(sign in text for sign in signs)


# --- going on ----------------------------------------------------------------------------------------------


def find_newest_valid(folder: Path) -> tuple[Path | None, list[Path]]:
    """The newest checkpoint that verifies, and those that were passed over: each is told, and stays.

    Raises KrillError when something looks like a checkpoint and nothing verifies: to begin anew unasked would
    throw the work away (verl #7952).
    """
    if (folder / PARTIAL_FOLDER).exists():
        log.info("checkpoint  a save that was cut off is removed: %s", relative_path(folder / PARTIAL_FOLDER))
        remove_partial(folder)
    named = list_checkpoints(folder)
    others = [path for path in folder.glob("checkpoint-*") if path not in named]
    broken: list[Path] = []
    for checkpoint in (*reversed(named), *others):
        wrong = verify(checkpoint)
        if not wrong:
            return checkpoint, broken
        for line in wrong:
            log.warning("checkpoint  passed over: %s", line)
        broken.append(checkpoint)
    if broken:
        raise KrillError(
            f"{relative_path(folder)}: none of the checkpoints there verifies, so there is nothing to go on from; put a copy "
            "of one back, or write resume=false to begin anew in a new folder (and another output=, if you named one)"
        )
    return None, broken


def verify(checkpoint: Path, contents: bool = True) -> list[str]:
    """What is wrong with a checkpoint, a line for each file; none: it is whole and unchanged.

    `contents`: hash the files as well, which reads them all; without, only their sizes are compared.
    """
    manifest = _read_manifest(checkpoint)
    if isinstance(manifest, str):
        return [f"{relative_path(checkpoint / MANIFEST)} {manifest}"]
    name = f"checkpoint-{manifest['step']}"
    if checkpoint.name != name:
        return [
            f"{relative_path(checkpoint)} was saved at step {manifest['step']}; rename it {name} to go on from it"
        ]
    wrong = (
        (file, _verify_file(checkpoint / file, entry, contents)) for file, entry in manifest["files"].items()
    )
    return [f"{relative_path(checkpoint / file)} {what}" for file, what in wrong if what]


def _read_manifest(checkpoint: Path) -> dict[str, Any] | str:
    """What the manifest says, or what is wrong with it."""
    try:
        manifest: dict[str, Any] = json.loads((checkpoint / MANIFEST).read_bytes())
        sealed = manifest.pop("signature")
    except FileNotFoundError:
        return "is missing: the checkpoint was not saved to its end"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except (ValueError, KeyError, AttributeError, TypeError):
        return "is damaged"
    if sealed != compute_signature(manifest):
        return "was changed since it was saved"
    if manifest["format"] != MANIFEST_FORMAT:
        return f"has format {manifest['format']}, this version of krill reads format {MANIFEST_FORMAT}"
    return manifest


def _verify_file(file: Path, entry: dict[str, Any], contents: bool) -> str | None:
    try:
        size = file.stat().st_size
        if size != entry["bytes"]:
            return f"has {size} bytes, {entry['bytes']} were saved"
        if contents and hash_file(file) != entry["xxh3_128"]:
            return "was changed since it was saved (another xxh3_128)"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None


# --- keeping -----------------------------------------------------------------------------------------------


def complete_checkpoints(folder: Path, broken: Collection[Path] = ()) -> list[Path]:
    """The checkpoints whose files are all there in their sizes, less those known to be `broken`; oldest first."""
    return [
        path for path in list_checkpoints(folder) if path not in broken and not verify(path, contents=False)
    ]


def rotate_checkpoints(
    folder: Path, keep: int, spared: Collection[int] = (), broken: Collection[Path] = ()
) -> None:
    """Delete the sound ones, but for the newest `keep` and those of the steps `spared`.

    To be called after a save, which has hashed the newest. A broken one neither counts nor goes.
    """
    for checkpoint in complete_checkpoints(folder, broken)[:-keep]:
        if parse_step(checkpoint) not in spared:
            partial = folder / PARTIAL_FOLDER
            partial.mkdir(exist_ok=True)
            os.replace(checkpoint, partial / checkpoint.name)  # a deletion that is cut off leaves no half
            remove_partial(folder)
