"""Exact deduplication and the train/validation split, both by a 128-bit hash of the cleaned text in NFC.

A hash takes 16 bytes per document, whatever its length. Among 10⁹ different documents the probability of a
collision is 10⁻²¹.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import xxhash

SplitName = Literal["train", "validation"]

SORT_BUCKET_SIZE = 2**24
"""The approximate number of digests that are sorted at once."""


def hash_text(content: bytes) -> bytes:
    """Returns the digest of a text's UTF-8: xxh3_128, 16 bytes."""
    return xxhash.xxh3_128_digest(content)


def assign_split(digest: bytes, fraction: float) -> SplitName:
    """Returns the split of a document, a function of its digest and the validation `fraction` alone.

    It does not depend on the order of documents, on other documents, or on the run; a larger fraction only
    moves documents from train to validation.
    """
    return "validation" if int.from_bytes(digest[:8], "big") < fraction * 2**64 else "train"


def is_validation(digests: np.ndarray, fraction: float) -> np.ndarray:
    """Returns where `assign_split` gives validation, bool (documents,), for digests as from `digests_to_array`."""
    # Compared as integers: numpy would round the digests to compare them with a float.
    return digests[:, 0] < np.uint64(math.ceil(fraction * 2**64))


def digests_to_array(digests: bytes) -> np.ndarray:
    """Returns concatenated digests as two 64-bit words each; big-endian uint64 (documents, 2)."""
    return np.frombuffer(digests, ">u8").reshape(-1, 2)


class SeenDigests:
    """A set of digests, by which the first copy of a document is kept. Takes about 100 bytes per document."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def check_and_add(self, digest: bytes) -> bool:
        """Adds the digest; returns whether it was present already."""
        size = len(self._seen)
        self._seen.add(digest)
        return len(self._seen) == size


def find_first_copies(digests: np.ndarray) -> np.ndarray:
    """Returns a mask of first occurrences, bool (documents,), for digests as from `digests_to_array`.

    Takes 24 bytes per document.
    """
    keep = np.ones(len(digests), bool)
    bits = max(0, (len(digests) // SORT_BUCKET_SIZE).bit_length())
    buckets = digests[:, 0] >> np.uint64(64 - bits) if bits else None
    for bucket in range(2**bits):
        index = np.arange(len(digests)) if buckets is None else np.flatnonzero(buckets == bucket)
        # The sort is stable, so the first of equal digests comes first.
        index = index[np.lexsort((digests[index, 1], digests[index, 0]))]
        ordered = digests[index]
        keep[index[1:][(ordered[1:] == ordered[:-1]).all(axis=1)]] = False
    return keep
