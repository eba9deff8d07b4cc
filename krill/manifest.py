"""Manifests: size and xxh3_128 of each file in a folder, with a checksum of all of it, to detect damage.

checkpoints/checkpoint-100/manifest.json    lists the files of that checkpoint (krill.runs.checkpoints)
model-manifest.json                         lists the files of the trained model in model/, beside it
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from krill.checksum import ChecksumError, read_checksummed_json, write_checksummed_json
from krill.config.signature import compute_signature, hash_file

MANIFEST_FORMAT = 1
CHECKPOINT_MANIFEST = "manifest.json"
"""File in a checkpoint that lists its files."""
MODEL_MANIFEST = "model-manifest.json"
"""File beside model/ that lists the files in it."""
HUB_CHECKPOINT_FOLDER = "last-checkpoint"
"""Folder in the Hub repository of a run that has its newest checkpoint; the other files are the model."""


def list_files(folder: Path) -> list[Path]:
    """Lists all files in `folder` and its subfolders, sorted."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def write_file_manifest(path: Path, folder: Path, files: Iterable[Path], **values: Any) -> None:
    """Writes the manifest of `files` in `folder`, which are complete; reads them, mostly from the page cache.

    `values`: more to record in the manifest.
    """
    entries = {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "xxh3_128": hash_file(file)}
        for file in files
    }
    write_checksummed_json(path, {"format": MANIFEST_FORMAT, **values, "files": entries})


def read_file_manifest(path: Path) -> dict[str, Any] | str:
    """Returns the manifest, or a description of its problem."""
    try:
        manifest = read_checksummed_json(path, _has_valid_signature)
    except FileNotFoundError:
        return "is missing: the files that it lists may not have been saved completely"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except ChecksumError as error:
        return error.problem
    if manifest["format"] != MANIFEST_FORMAT:
        return f"has format {manifest['format']}; this version of krill reads format {MANIFEST_FORMAT}"
    return manifest


def _has_valid_signature(manifest: dict[str, Any]) -> bool:
    """Returns whether a manifest of an earlier version of krill is intact: it had a signature, which is removed."""
    return manifest.pop("signature", None) == compute_signature(manifest) and "format" in manifest


def verify_file(
    file: Path, entry: dict[str, Any], compute_hash: Callable[[Path], str] | None = hash_file
) -> str | None:
    """Returns what is wrong with a file by its entry in a manifest; None: nothing.

    `compute_hash`: returns the xxh3_128 of a file; None: only the size is compared.
    """
    try:
        size = file.stat().st_size
        if size != entry["bytes"]:
            return f"has {size} bytes instead of {entry['bytes']}"
        if compute_hash and compute_hash(file) != entry["xxh3_128"]:
            return "was changed since it was saved (different xxh3_128)"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None
