"""Near-duplicate detection: MinHash LSH finds candidates, the exact Jaccard similarity of their shingles decides.

Broder 1997, "On the resemblance and containment of documents"; bands as in Leskovec, Rajaraman & Ullman, "Mining
of Massive Datasets", chapter 3. A document's MinHash signature is split into bands, each hashed to one key. Two
documents of similarity J share a key with probability 1 − (1 − J^rows)^bands.

    MinHashSigner.compute_keys    texts → keys, part by part, in any process
    find_near_duplicates          keys of all documents → the document that each one duplicates

The documents are processed in order. A document is dropped if an earlier kept document shares a key with it and
the Jaccard similarity of their shingle sets, which is computed and not estimated, is at least `threshold`; both are
those of the text in NFC. The result therefore depends on the texts and their order alone, and no document is dropped
for its similarity to a dropped document.
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
from krill.extras import format_install_command
from krill.text import shingles as shingling
from krill.text.batching import batch_by_size
from krill.text.cleaning import compose
from krill.text.shingles import hash_shingles, mix_bits, sort_unique

log = logging.getLogger("krill")

VERSION = 2
"""Part of the signature of prepared data; incremented when the same texts give other near duplicates."""

MAX_COMPARISONS = 32
"""Maximum number of kept documents that a document is compared with, those with most shared keys first (then the
earliest), and maximum number of kept documents that a bucket records. It bounds the time for boilerplate, which
fills a bucket with thousands of documents."""

SHINGLE_CACHE_BYTES = 2**27
"""Size of the LRU cache of shingle sets. It does not affect the result."""

_SEED = 1
_ROW_MULTIPLIER = np.uint64(0xA24BAED4963EE407)
_BATCH_CHARACTERS, _BATCH_DOCUMENTS = 2**20, 1024
_BLOCK_DOCUMENTS = 256
_ENTRY_BYTES = 250
"""The memory that a set takes beside its hashes."""


def require_rensa(config: MinHashConfig) -> None:
    """Raises UsageError if near-duplicate detection is enabled and rensa, which it needs, is not installed."""
    if config.threshold is not None:
        _import_rensa()


def compute_minhash_identity(config: MinHashConfig) -> Any:
    """Returns what determines the near duplicates, as JSON: None if disabled, else the settings and the versions."""
    if config.threshold is None:
        return None
    versions = [VERSION, shingling.VERSION, _import_rensa().ALGORITHM_VERSION]
    return {**config.model_dump(mode="json"), "versions": versions}


class MinHashSigner:
    """Computes the LSH keys of texts. The keys of a text are the same in every process and batch."""

    def __init__(self, config: MinHashConfig) -> None:
        self._config = config
        self._minhash = _import_rensa()

    def compute_keys(self, texts: list[str]) -> np.ndarray:
        """Returns a key per text and band; uint64 (len(texts), bands)."""
        keys = [
            self._compute_batch_keys([compose(text) for text in batch])
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
    num_documents: int,
    read_band: Callable[[int], np.ndarray],
    read_texts: Callable[[Sequence[int]], list[str]],
    config: MinHashConfig,
) -> np.ndarray:
    """Returns the earlier kept document that each document duplicates, -1 if it is kept; int64 (num_documents,).

    `read_band(b)` returns the keys of band b of all documents, uint64 (num_documents,); it is called once per band.
    `read_texts(indices)` returns texts; it is called with batches of documents that share a key with another one, in
    rising order where possible, and possibly more than once for a document. Memory: about 40 bytes per document,
    8 bytes per band in which it shares a key with another document, and SHINGLE_CACHE_BYTES. Logs a warning if
    MAX_COMPARISONS limited the comparisons.
    """
    assert config.threshold is not None, "near-duplicate detection is disabled"
    duplicates = np.full(num_documents, -1, np.int64)
    buckets = _Buckets(read_band, config.bands)
    sets = _ShingleSets(read_texts, config)
    num_capped = 0
    for block in buckets.iterate_blocks():
        sets.load(_collect_compared(block, buckets))
        for document, bucket_ids in block:
            candidates, is_complete = buckets.find_candidates(bucket_ids)
            for candidate in candidates:
                if sets.is_similar(document, candidate, config.threshold):
                    duplicates[document] = candidate
                    break
            else:
                buckets.add_candidate(document, bucket_ids)
                num_capped += not is_complete
    if num_capped:
        log.warning(
            "duplicates  %s of %s documents have more than %d candidates; only the likeliest were compared, "
            "so some near duplicates may remain", f"{num_capped:,}", f"{num_documents:,}", MAX_COMPARISONS,
        )  # fmt: skip
    return duplicates


_Block = list[tuple[int, list[int]]]
"""(document, ids of its buckets), in the order of the documents."""


class _Buckets:
    """The documents that share a key, by band and key; a key of a single document has no bucket.

    A bucket is a slice of `_members`. As the documents are processed in order, the kept ones are moved to its front.
    """

    def __init__(self, read_band: Callable[[int], np.ndarray], num_bands: int) -> None:
        bands = [_group_shared_keys(read_band(index)) for index in range(num_bands)]
        self._members = np.concatenate([members for members, _ in bands])
        sizes = np.concatenate([sizes for _, sizes in bands])
        self._starts = np.cumsum(sizes) - sizes
        self._kept_counts = np.zeros(len(sizes), np.uint8)
        order = np.argsort(self._members, kind="stable")
        self._bucket_ids = np.repeat(np.arange(len(sizes), dtype=np.uint32), sizes)[order]
        documents = self._members[order]
        self._offsets = _find_run_starts(documents)
        self._documents = documents[self._offsets]

    def iterate_blocks(self) -> Iterator[_Block]:
        """Yields all documents that share a key with another one, in order, _BLOCK_DOCUMENTS at a time."""
        offsets = np.append(self._offsets, len(self._bucket_ids))
        for first in range(0, len(self._documents), _BLOCK_DOCUMENTS):
            documents = self._documents[first : first + _BLOCK_DOCUMENTS].tolist()
            edges = itertools.pairwise(offsets[first : first + _BLOCK_DOCUMENTS + 1].tolist())
            yield [
                (document, self._bucket_ids[start:stop].tolist())
                for document, (start, stop) in zip(documents, edges, strict=True)
            ]

    def find_candidates(self, buckets: list[int]) -> tuple[list[int], bool]:
        """Returns the kept documents of these buckets, likeliest first, and whether the list is complete."""
        shared: Counter[int] = Counter()
        is_complete = True
        for bucket in buckets:
            if num_kept := int(self._kept_counts[bucket]):
                start = self._starts[bucket]
                shared.update(self._members[start : start + min(num_kept, MAX_COMPARISONS)].tolist())
                is_complete &= num_kept <= MAX_COMPARISONS
        likeliest = sorted(shared, key=lambda document: (-shared[document], document))
        return likeliest[:MAX_COMPARISONS], is_complete and len(likeliest) <= MAX_COMPARISONS

    def add_candidate(self, document: int, buckets: list[int]) -> None:
        """Adds `document` as a candidate for later documents to those of its `buckets` that have room."""
        for bucket in buckets:
            num_kept = int(self._kept_counts[bucket])
            if num_kept < MAX_COMPARISONS:
                self._members[self._starts[bucket] + num_kept] = document
            self._kept_counts[bucket] = min(num_kept, MAX_COMPARISONS) + 1


def _group_shared_keys(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the documents that share a key, by key and in order, uint32, and their number per key."""
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    sizes = np.diff(_find_run_starts(keys), append=len(keys))
    return order[np.repeat(sizes > 1, sizes)].astype(np.uint32), sizes[sizes > 1]


def _find_run_starts(values: np.ndarray) -> np.ndarray:
    """Returns the index at which each run of equal values starts; int64."""
    return np.flatnonzero(np.append(True, values[1:] != values[:-1])[: len(values)])


def _collect_compared(block: _Block, buckets: _Buckets) -> set[int]:
    """Returns the documents that will be compared in this block, as far as is known before it is processed."""
    compared: set[int] = set()
    first_documents: dict[int, int] = {}
    for document, bucket_ids in block:
        candidates, _ = buckets.find_candidates(bucket_ids)
        neighbors = {first_documents.setdefault(bucket, document) for bucket in bucket_ids} - {document}
        if candidates or neighbors:
            compared |= {document, *candidates, *neighbors}
    return compared


class _ShingleSets:
    """An LRU cache of the shingle sets of documents: distinct hashes, sorted; uint64 (n,)."""

    def __init__(self, read_texts: Callable[[Sequence[int]], list[str]], config: MinHashConfig) -> None:
        self._read_texts, self._config = read_texts, config
        self._sets: dict[int, np.ndarray] = {}
        self._bytes = 0

    def load(self, documents: Iterable[int]) -> None:
        """Reads the sets that are not cached, in batches."""
        missing = sorted(set(documents) - self._sets.keys())
        for first in range(0, len(missing), _BLOCK_DOCUMENTS):
            batch = missing[first : first + _BLOCK_DOCUMENTS]
            texts = [compose(text) for text in self._read_texts(batch)]
            hashes, offsets = hash_shingles(texts, self._config.unit, self._config.size)
            for document, (start, stop) in zip(batch, itertools.pairwise(offsets.tolist()), strict=True):
                self._add(document, sort_unique(hashes[start:stop]))

    def is_similar(self, one: int, other: int, threshold: float) -> bool:
        """Returns whether the Jaccard similarity of two documents is at least `threshold`."""
        a, b = self._get_set(one), self._get_set(other)
        smaller, larger = sorted((len(a), len(b)))
        if smaller < threshold * larger or not smaller:
            return False
        return compute_jaccard_similarity(a, b) >= threshold

    def _get_set(self, document: int) -> np.ndarray:
        if document not in self._sets:
            self.load([document])
        shingles = self._sets[document] = self._sets.pop(document)  # now the most recently used
        return shingles

    def _add(self, document: int, hashes: np.ndarray) -> None:
        self._sets[document] = hashes
        self._bytes += hashes.nbytes + _ENTRY_BYTES
        while self._bytes > SHINGLE_CACHE_BYTES and len(self._sets) > 1:
            oldest = next(iter(self._sets))
            self._bytes -= self._sets.pop(oldest).nbytes + _ENTRY_BYTES


def compute_jaccard_similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the Jaccard similarity of two sets, given as sorted arrays of distinct values, not both empty."""
    both = np.concatenate((a, b))
    both.sort(kind="stable")
    shared = int(np.count_nonzero(both[1:] == both[:-1]))
    return shared / (len(both) - shared)


def _import_rensa() -> Any:
    """Returns rensa's RMinHash. Raises UsageError if rensa is not installed."""
    try:
        return importlib.import_module("rensa").RMinHash
    except ImportError as error:
        raise UsageError(f"data.minhash.threshold needs rensa: {format_install_command('dedup')}") from error
