"""Identity is content: the signature of what determines an output."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import xxhash
from pydantic import BaseModel


def signature(*parts: Any) -> str:
    """Hex SHA-256 of `parts` (models, JSON values); folders carry its first 8 digits.

    A model counts by its validated values less those that its class names in `UNSIGNED`: where a thing is
    made and how often it reports does not change what is made.
    """
    canonical = json.dumps([_plain(part) for part in parts], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        unsigned: frozenset[str] = getattr(value, "UNSIGNED", frozenset())
        return {key: _plain(getattr(value, key)) for key in type(value).model_fields if key not in unsigned}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value


def file_digest(path: Path) -> str:
    """Hex xxh3_128 of a file's bytes."""
    digest = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()
