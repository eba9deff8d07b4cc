"""Near duplicates: MinHash LSH finds candidates, their shingles decide.

Broder 1997, "On the resemblance and containment of documents"; bands as in Leskovec, Rajaraman & Ullman, "Mining
of Massive Datasets", chapter 3. A document's MinHash signature is cut into bands, each hashed to one key. Two
documents of similarity J share a key with probability 1 − (1 − J^rows)^bands.

    Signer.keys        texts → keys, part by part, in any process
    near_copies        all keys → which document is a near copy of which

Going through the documents in order, one is dropped if an earlier kept one shares a key with it and the Jaccard
similarity of their shingle sets, computed and not estimated, is at least `threshold`. So the result depends on
the texts and their order alone, and nothing is dropped by way of a document that was dropped itself.
"""

from __future__ import annotations

import importlib
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from krill.config.schema import MinHashConfig
from krill.errors import UsageError
from krill.text import shingles as shingling
from krill.text.batching import batch_by_size
from krill.text.shingles import hash_shingles, mix_bits, sort_unique

log = logging.getLogger("krill")

VERSION = 1
"""Part of the signature of prepared data: raised when the same texts give other near copies."""

MAX_COMPARISONS = 32
"""A document is compared with at most so many kept ones, those that share most keys first (then the earliest),
and a bucket remembers its first so many. Boilerplate that fills a bucket with thousands stays linear."""

SHINGLE_CACHE_BYTES = 2**27
"""Shingle sets that are remembered, least recently used out first. Their number changes no result."""

_SEED = 1
_ROW_MULTIPLIER = np.uint64(0xA24BAED4963EE407)
_BATCH_CHARACTERS, _BATCH_DOCUMENTS = 2**20, 1024
_BLOCK_DOCUMENTS = 256
_ENTRY_BYTES = 250
"""What a set takes beside its hashes."""


def require_rensa(near: MinHashConfig) -> None:
    """Raise UsageError if near duplicates are asked for and rensa, which signs, is not installed."""
    if near.threshold is not None:
        _import_rensa()


def compute_minhash_identity(near: MinHashConfig) -> Any:
    """What of `near` determines the data, as JSON: None if it is off, else values and versions."""
    if near.threshold is None:
        return None
    versions = [VERSION, shingling.VERSION, _import_rensa().ALGORITHM_VERSION]
    return {**near.model_dump(mode="json"), "versions": versions}


class MinHashSigner:
    """Texts to LSH keys. The keys of a text are the same in every process and batch."""

    def __init__(self, near: MinHashConfig) -> None:
        self._config = near
        self._minhash = _import_rensa()

    def keys(self, texts: list[str]) -> np.ndarray:
        """One key per text and band; uint64 (len(texts), bands)."""
        keys = [
            self._compute_batch_keys(batch)
            for batch in batch_by_size(texts, _BATCH_CHARACTERS, len, _BATCH_DOCUMENTS)
        ]
        return np.concatenate([np.zeros((0, self._config.bands), np.uint64), *keys])

    def _compute_batch_keys(self, texts: list[str]) -> np.ndarray:
        bands, rows = self._config.bands, self._config.rows
        hashes, offsets = hash_shingles(texts, self._config.unit, self._config.size)
        signatures = self._minhash.digest_matrix_from_flat_token_hashes(
            hashes, offsets.astype(np.uint64), bands * rows, _SEED
        )
        values = np.array(signatures.to_rows(), np.uint64).reshape(len(texts), bands, rows)
        keys = np.zeros((len(texts), bands), np.uint64)
        for row in range(rows):
            keys *= _ROW_MULTIPLIER
            keys += values[:, :, row]
        return mix_bits(keys)


def find_near_duplicates(
    documents: int,
    band: Callable[[int], np.ndarray],
    texts: Callable[[Sequence[int]], list[str]],
    near: MinHashConfig,
) -> np.ndarray:
    """The earlier, kept document that each document is a near copy of, -1 where it is kept; int64 (documents,).

    `band(b)` gives the keys of band b of all documents, uint64 (documents,); it is called once per band.
    `texts(indices)` gives texts; it is asked in batches, in rising order where it can be, for documents that share
    a key with another, and may be asked for one again. Memory: about 40 bytes a document, 8 for each band in
    which it shares a key with another, and CACHE_BYTES.
    """
    assert near.threshold is not None, "near duplicates are off"
    copies = np.full(documents, -1, np.int64)
    buckets = _Buckets(band, near.bands)
    sets = _ShingleSets(texts, near)
    capped = 0
    for block in buckets.iterate_blocks():
        sets.load(_collect_compared(block, buckets))
        for document, its_buckets in block:
            candidates, complete = buckets.find_candidates(its_buckets)
            for candidate in candidates:
                if sets.is_similar(document, candidate, near.threshold):
                    copies[document] = candidate
                    break
            else:
                buckets.add_candidate(document, its_buckets)
                capped += not complete
    if capped:
        log.warning(
            "near duplicates: %s of %s documents have more than %d candidates; compared were the likeliest, "
            "so a copy among them may have stayed", f"{capped:,}", f"{documents:,}", MAX_COMPARISONS,
        )  # fmt: skip
    return copies


_Block = list[tuple[int, list[int]]]
"""(document, its buckets), documents in order."""


class _Buckets:
    """Documents that share a key, per band and key; only keys of two documents or more have a bucket.

    A bucket is a slice of `_members`. Going through the documents in order, its kept ones are moved to its front.
    """

    def __init__(self, band: Callable[[int], np.ndarray], bands: int) -> None:
        parts = [_group_shared_keys(band(index)) for index in range(bands)]
        self._members = np.concatenate([members for members, _ in parts])
        sizes = np.concatenate([sizes for _, sizes in parts])
        self._starts = np.cumsum(sizes) - sizes
        self._kept_counts = np.zeros(len(sizes), np.uint8)
        order = np.argsort(self._members, kind="stable")
        self._bucket_ids = np.repeat(np.arange(len(sizes), dtype=np.uint32), sizes)[order]
        documents = self._members[order]
        self._offsets = _find_run_starts(documents)
        self._documents = documents[self._offsets]

    def iterate_blocks(self) -> Iterator[_Block]:
        """All documents that share a key with another, in order, some hundred at a time."""
        offsets = np.append(self._offsets, len(self._bucket_ids))
        for first in range(0, len(self._documents), _BLOCK_DOCUMENTS):
            documents = self._documents[first : first + _BLOCK_DOCUMENTS].tolist()
            edges = itertools.pairwise(offsets[first : first + _BLOCK_DOCUMENTS + 1].tolist())
            yield [
                (document, self._bucket_ids[start:stop].tolist())
                for document, (start, stop) in zip(documents, edges, strict=True)
            ]

    def find_candidates(self, buckets: list[int]) -> tuple[list[int], bool]:
        """Kept documents of these buckets, likeliest first, and whether these are all that were kept."""
        shared: Counter[int] = Counter()
        complete = True
        for bucket in buckets:
            if kept := int(self._kept_counts[bucket]):
                start = self._starts[bucket]
                shared.update(self._members[start : start + min(kept, MAX_COMPARISONS)].tolist())
                complete &= kept <= MAX_COMPARISONS
        likeliest = sorted(shared, key=lambda document: (-shared[document], document))
        return likeliest[:MAX_COMPARISONS], complete and len(likeliest) <= MAX_COMPARISONS

    def add_candidate(self, document: int, buckets: list[int]) -> None:
        """Make `document` a candidate for the later ones of its buckets that still have room."""
        for bucket in buckets:
            kept = int(self._kept_counts[bucket])
            if kept < MAX_COMPARISONS:
                self._members[self._starts[bucket] + kept] = document
            self._kept_counts[bucket] = min(kept, MAX_COMPARISONS) + 1


def _group_shared_keys(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Documents whose key is another's too, key by key and in order, uint32; and how many have each key."""
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    sizes = np.diff(_find_run_starts(keys), append=len(keys))
    return order[np.repeat(sizes > 1, sizes)].astype(np.uint32), sizes[sizes > 1]


def _find_run_starts(values: np.ndarray) -> np.ndarray:
    """Where each run of equal values begins; int64."""
    return np.flatnonzero(np.append(True, values[1:] != values[:-1])[: len(values)])


def _collect_compared(block: _Block, buckets: _Buckets) -> set[int]:
    """Documents that will be compared in this block, as far as is known before it is decided."""
    found: set[int] = set()
    opened: dict[int, int] = {}
    for document, its_buckets in block:
        candidates, _ = buckets.find_candidates(its_buckets)
        neighbours = {opened.setdefault(bucket, document) for bucket in its_buckets} - {document}
        if candidates or neighbours:
            found |= {document, *candidates, *neighbours}
    return found


class _ShingleSets:
    """The shingle sets of documents: distinct hashes, sorted; uint64 (n,)."""

    def __init__(self, texts: Callable[[Sequence[int]], list[str]], near: MinHashConfig) -> None:
        self._read_texts, self._config = texts, near
        self._sets: dict[int, np.ndarray] = {}
        self._bytes = 0

    def load(self, documents: Iterable[int]) -> None:
        """Read those that are not there, in batches."""
        missing = sorted(set(documents) - self._sets.keys())
        for first in range(0, len(missing), _BLOCK_DOCUMENTS):
            batch = missing[first : first + _BLOCK_DOCUMENTS]
            hashes, offsets = hash_shingles(self._read_texts(batch), self._config.unit, self._config.size)
            for document, (start, stop) in zip(batch, itertools.pairwise(offsets.tolist()), strict=True):
                self._add(document, sort_unique(hashes[start:stop]))

    def is_similar(self, one: int, other: int, threshold: float) -> bool:
        """Whether the Jaccard similarity of two documents is at least `threshold`."""
        a, b = self._get_set(one), self._get_set(other)
        smaller, larger = sorted((len(a), len(b)))
        if smaller < threshold * larger or not smaller:
            return False
        return jaccard_similarity(a, b) >= threshold

    def _get_set(self, document: int) -> np.ndarray:
        if document not in self._sets:
            self.load([document])
        found = self._sets[document] = self._sets.pop(document)
        return found

    def _add(self, document: int, hashes: np.ndarray) -> None:
        self._sets[document] = hashes
        self._bytes += hashes.nbytes + _ENTRY_BYTES
        while self._bytes > SHINGLE_CACHE_BYTES and len(self._sets) > 1:
            oldest = next(iter(self._sets))
            self._bytes -= self._sets.pop(oldest).nbytes + _ENTRY_BYTES


def jaccard_similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Jaccard similarity of two sets, each sorted and without repetition, not both empty."""
    both = np.concatenate((a, b))
    both.sort(kind="stable")
    shared = int(np.count_nonzero(both[1:] == both[:-1]))
    return shared / (len(both) - shared)


def _import_rensa() -> Any:
    """rensa's RMinHash."""
    try:
        return importlib.import_module("rensa").RMinHash
    except ImportError as error:
        raise UsageError("data.minhash.threshold needs rensa: pip install 'krill[dedup]'") from error
