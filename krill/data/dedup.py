"""Exact duplicates, and the split: both from one 128-bit hash of the cleaned text.

Hashes instead of texts: the memory of a run is about 100 bytes per distinct document, whatever its length.
With 10⁹ documents the chance that any two different ones share a hash is 10⁻²¹.
"""

from __future__ import annotations

from typing import Literal

import xxhash

SplitName = Literal["train", "validation"]


def digest_of(text: str) -> bytes:
    """16 bytes: xxh3_128 of the text's UTF-8."""
    return xxhash.xxh3_128_digest(text.encode())


def split_of(digest: bytes, fraction: float) -> SplitName:
    """The split of a document: a function of its text and the fraction alone.

    So it does not change with the order of documents, with other documents, or between runs, and a larger
    fraction only moves documents from train to validation.
    """
    return "validation" if int.from_bytes(digest[:8], "big") < fraction * 2**64 else "train"


class Duplicates:
    """Remembers digests; the first copy of a document is kept."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def saw(self, digest: bytes) -> bool:
        """True if the digest came before; from now on it has."""
        before = len(self._seen)
        self._seen.add(digest)
        return len(self._seen) == before
