"""Manifests: size and xxh3_128 of each file in a folder, and a signature of all of it, to detect damage.

checkpoints/checkpoint-100/manifest.json    lists the files of that checkpoint (krill.runs.checkpoints)
model-manifest.json                         lists the files of the trained model in model/, beside it
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from krill import atomic
from krill.config.signature import compute_signature, hash_file

MANIFEST_FORMAT = 1
CHECKPOINT_MANIFEST = "manifest.json"
"""File in a checkpoint that lists its files."""
MODEL_MANIFEST = "model-manifest.json"
"""File beside model/ that lists the files in it."""


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
    manifest = {"format": MANIFEST_FORMAT, **values, "files": entries}
    atomic.write_json(path, manifest | {"signature": compute_signature(manifest)})


def read_file_manifest(path: Path) -> dict[str, Any] | str:
    """Returns the manifest, or a description of its problem."""
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        signature = manifest.pop("signature")
    except FileNotFoundError:
        return "is missing: the checkpoint was not saved completely"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except (ValueError, KeyError, AttributeError, TypeError):
        return "is damaged"
    if signature != compute_signature(manifest):
        return "was changed since it was saved"
    if manifest["format"] != MANIFEST_FORMAT:
        return f"has format {manifest['format']}; this version of krill reads format {MANIFEST_FORMAT}"
    return manifest


def verify_file(file: Path, entry: dict[str, Any], check_hash: bool = True) -> str | None:
    """Returns what is wrong with a file by its entry in a manifest; None: nothing."""
    try:
        size = file.stat().st_size
        if size != entry["bytes"]:
            return f"has {size} bytes instead of {entry['bytes']}"
        if check_hash and hash_file(file) != entry["xxh3_128"]:
            return "was changed since it was saved (different xxh3_128)"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None
