"""Signatures: hashes of everything that determines a result, which identify its folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import xxhash


def compute_signature(*parts: Any) -> str:
    """Returns the hex SHA-256 of `parts` (models and JSON values); folder names contain its first 8 digits.

    A model counts by its validated values, without fields of type `Unsigned[...]`: where a result is computed and how
    often progress is reported does not change it. Raises TypeError for a value that JSON cannot represent.
    """
    canonical = json.dumps([_to_json_value(part) for part in parts], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _to_json_value(value: Any) -> Any:
    # A pydantic model is recognized without importing pydantic, which not every caller needs.
    fields = getattr(type(value), "model_fields", None)
    if fields is not None:
        unsigned = value.get_unsigned_keys() if hasattr(value, "get_unsigned_keys") else frozenset()
        return {key: _to_json_value(getattr(value, key)) for key in fields if key not in unsigned}
    if isinstance(value, (list, tuple)):
        return [_to_json_value(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _to_json_value(item) for key, item in value.items()}
    return value


def hash_file(path: Path) -> str:
    """Returns the hex xxh3_128 of a file's bytes."""
    digest = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()
