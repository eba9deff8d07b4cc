"""Exact duplicates, and the split: both from one 128-bit hash of the cleaned text.

Hashes instead of texts: 16 bytes per document, whatever its length. With 10⁹ documents the chance that any two
different ones share a hash is 10⁻²¹.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import xxhash

SplitName = Literal["train", "validation"]

SORT_BUCKET_SIZE = 2**24
"""About so many digests are sorted at once."""


def hash_text(content: bytes) -> bytes:
    """16 bytes: xxh3_128 of a text's UTF-8."""
    return xxhash.xxh3_128_digest(content)


def assign_split(digest: bytes, fraction: float) -> SplitName:
    """The split of a document: a function of its text and the fraction alone.

    So it does not change with the order of documents, with other documents, or between runs, and a larger
    fraction only moves documents from train to validation.
    """
    return "validation" if int.from_bytes(digest[:8], "big") < fraction * 2**64 else "train"


def is_validation(digests: np.ndarray, fraction: float) -> np.ndarray:
    """`assign_split` of many documents: where it is validation, bool (documents,); digests are `digests_to_array`."""
    # As an integer: numpy would round the digests to compare them with a float.
    return digests[:, 0] < np.uint64(math.ceil(fraction * 2**64))


def digests_to_array(digests: bytes) -> np.ndarray:
    """Digests one after the other as two 64-bit words each; big-endian uint64 (documents, 2)."""
    return np.frombuffer(digests, ">u8").reshape(-1, 2)


class SeenDigests:
    """Remembers digests; the first copy of a document is kept. About 100 bytes per document."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def check_and_add(self, digest: bytes) -> bool:
        """True if the digest came before; from now on it has."""
        before = len(self._seen)
        self._seen.add(digest)
        return len(self._seen) == before


def find_first_copies(digests: np.ndarray) -> np.ndarray:
    """Where a digest has not come before, bool (documents,); digests are `digests_to_array`. 24 bytes per document."""
    keep = np.ones(len(digests), bool)
    bits = max(0, (len(digests) // SORT_BUCKET_SIZE).bit_length())
    buckets = digests[:, 0] >> np.uint64(64 - bits) if bits else None
    for bucket in range(2**bits):
        index = np.arange(len(digests)) if buckets is None else np.flatnonzero(buckets == bucket)
        index = index[
            np.lexsort((digests[index, 1], digests[index, 0]))
        ]  # stable: of equals, the first leads
        ordered = digests[index]
        keep[index[1:][(ordered[1:] == ordered[:-1]).all(axis=1)]] = False
    return keep
