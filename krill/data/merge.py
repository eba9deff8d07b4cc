"""Merges the parts of a source into one token store: everything that depends on more than one part.

    exact duplicates across parts → near duplicates → split → weights → order → shards

The layout takes about 90 bytes of memory per document and reads no tokens (except of near duplicates). The shards of
the store are then copied from the parts by any worker; an interrupted merge reuses finished shards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import xxhash

from krill.checksum import ChecksumError, read_checksummed_json, write_checksummed_json
from krill.data import store
from krill.data.part_writer import PartFile, PreparationContext
from krill.sources.source import Part, SkippedRecords
from krill.text import minhash
from krill.text.dedup import find_first_copies, is_validation
from krill.text.documents import DropStats

COPY_CHUNK_TOKENS = 2**22
"""Maximum number of tokens copied at once."""


@dataclass(frozen=True)
class DocumentTable:
    """One row per document of all parts, in order; arrays (documents,)."""

    part: np.ndarray
    """Index of the part."""
    start: np.ndarray
    """Index of the first token in the part's tokens."""
    length: np.ndarray
    """Number of tokens, including bos and eos."""
    text_bytes: np.ndarray
    digest: np.ndarray
    """Two words of 64 bits each, (documents, 2); see `krill.text.dedup.digests_to_array`."""
    source: np.ndarray
    """Index of the source."""


class ShardLayout(NamedTuple):
    """The documents of one shard of the store, in order; arrays (documents,) as in `DocumentTable`."""

    name: str
    part: np.ndarray
    start: np.ndarray
    length: np.ndarray
    source: np.ndarray


@dataclass(frozen=True)
class StoreLayout:
    """The content of the store to be written."""

    splits: dict[str, dict[str, Any]]
    """documents, tokens, text_bytes and by_source of each split, as in the manifest."""
    shards: dict[str, list[ShardLayout]]
    """The shards of each split."""
    read_counts: dict[str, int]
    """Documents and tokens read, and decomposed documents, if there are any."""
    unknown_tokens: int
    """Number of unk tokens among the tokens read."""
    repeated_counts: dict[str, int]
    """Repeated documents and tokens and their text bytes, for source weights above 1."""
    dropped: DropStats
    skipped: SkippedRecords
    validation_set: str | None
    """Identity of the held-out texts: a hash of their digests, whatever their order; None if there are none."""


def compute_store_layout(
    context: PreparationContext, parts: Sequence[Part], shard_tokens: int
) -> StoreLayout:
    """Decides for every document whether and where it is stored; requires all parts."""
    part_files = [context.get_part_file(index) for index in range(len(parts))]
    documents = _build_document_table(part_files, parts)
    dropped, skipped = DropStats(), SkippedRecords()
    read_counts = Counter({"documents": 0, "tokens": 0})
    for part_file in part_files:
        dropped.merge(part_file.record["dropped"])
        skipped.merge(part_file.record["skipped"])
        read_counts.update(part_file.record["read"])
    is_kept = find_first_copies(documents.digest)
    texts = _StoredTexts(context, parts, part_files, documents)
    texts.count_dropped(dropped, "duplicate", np.flatnonzero(~is_kept))
    if context.data.minhash.threshold is not None:
        _drop_near_duplicates(context, part_files, is_kept, texts, dropped)
    validation = is_validation(documents.digest, context.data.validation_fraction)
    repeats = _compute_repeats(documents, np.array(context.source.weights), is_kept & ~validation)
    texts.count_dropped(dropped, "weight", np.flatnonzero(is_kept & ~validation & (repeats == 0)))
    order = {
        "train": np.concatenate([*_iterate_passes(repeats)]),
        "validation": np.flatnonzero(is_kept & validation),
    }
    repeated = order["train"][np.count_nonzero(repeats) :]
    return StoreLayout(
        splits={name: _count_split(documents, index, context.source.names) for name, index in order.items()},
        shards={
            name: list(_split_into_shards(name, documents, index, shard_tokens))
            for name, index in order.items()
        },
        read_counts=dict(read_counts),
        unknown_tokens=sum(part_file.record["unknown_tokens"] for part_file in part_files),
        repeated_counts={
            "documents": len(repeated),
            "tokens": int(documents.length[repeated].sum()),
            "text_bytes": int(documents.text_bytes[repeated].sum()),
        },
        dropped=dropped,
        skipped=skipped,
        validation_set=_hash_texts(documents.digest[order["validation"]]),
    )


def _hash_texts(digests: np.ndarray) -> str | None:
    """Returns the hash of a set of texts by their digests, uint64 (documents, 2); None for an empty set."""
    if not len(digests):
        return None
    ordered = digests[np.lexsort(digests.T[::-1])].astype(">u8")
    return xxhash.xxh3_128_hexdigest(ordered.tobytes())


def write_shards(
    context: PreparationContext, shards: Iterable[ShardLayout], on_progress: Callable[[int, int], None]
) -> Iterator[tuple[ShardLayout, dict[str, Any]]]:
    """Writes shards of the store to the parent of the folder of the parts; yields each with its record.

    Finished shards are reused: their records are in the folder of the parts. `on_progress` is not called.
    """
    for shard in shards:
        yield shard, _write_or_reuse_shard(context, shard)


def _write_or_reuse_shard(context: PreparationContext, shard: ShardLayout) -> dict[str, Any]:
    folder = context.folder.parent
    path = context.folder / f"{shard.name}.json"
    with suppress(OSError, ChecksumError):  # not written yet, or damaged
        finished = read_checksummed_json(path)
        if finished["identity"] == context.store_signature and store.has_shard(
            folder, context.dtype, finished["record"]
        ):
            return finished["record"]
    record = store.write_shard(
        folder, shard.name, context.dtype, _copy_tokens(context, shard), shard.length, shard.source
    )
    write_checksummed_json(path, {"identity": context.store_signature, "record": record})
    return record


def _build_document_table(part_files: Sequence[PartFile], parts: Sequence[Part]) -> DocumentTable:
    lengths = [part.read_column("lengths") for part in part_files]
    counts = [len(part) for part in lengths]
    sources = np.array([part.source for part in parts], np.uint16)
    return DocumentTable(
        part=np.repeat(np.arange(len(part_files), dtype=np.int32), counts),
        start=np.concatenate([np.zeros(0, np.int64), *(np.cumsum(part) - part for part in lengths)]),
        length=np.concatenate([np.zeros(0, np.int64), *lengths]),
        text_bytes=np.concatenate(
            [np.zeros(0, np.int64), *(part.read_column("text_bytes") for part in part_files)]
        ),
        digest=np.concatenate(
            [np.zeros((0, 2), ">u8"), *(part.read_column("digests") for part in part_files)]
        ).astype(np.uint64),
        source=np.repeat(sources, counts),
    )


def _drop_near_duplicates(
    context: PreparationContext,
    part_files: Sequence[PartFile],
    is_kept: np.ndarray,
    texts: _StoredTexts,
    dropped: DropStats,
) -> None:
    """Clears `is_kept`, bool (documents,), where a document is a near copy of an earlier kept document."""
    candidates = np.flatnonzero(is_kept)

    def read_band(number: int) -> np.ndarray:
        return np.concatenate([part.read_column(f"band{number}") for part in part_files])[candidates]

    copies = minhash.find_near_duplicates(
        len(candidates),
        read_band,
        lambda index: texts.decode(candidates[np.asarray(index, np.int64)]),
        context.data.minhash,
    )
    copy, first = candidates[copies >= 0], candidates[copies[copies >= 0]]
    is_kept[copy] = False
    texts.count_dropped(dropped, "near duplicate", copy, first)


class _StoredTexts:
    """Decodes the texts of stored documents from their tokens."""

    def __init__(
        self,
        context: PreparationContext,
        parts: Sequence[Part],
        part_files: Sequence[PartFile],
        documents: DocumentTable,
    ) -> None:
        self._context, self._parts, self._part_files, self._documents = context, parts, part_files, documents

    def decode(self, index: np.ndarray) -> list[str]:
        """Returns the texts of the documents with these indices."""
        ids = []
        for document in index.tolist():
            start, length = int(self._documents.start[document]), int(self._documents.length[document])
            part = self._part_files[self._documents.part[document]]
            ids.append(part.read_tokens(start + 1, start + length - 1).tolist())
        return self._context.tokenizer.backend.decode_batch(ids, skip_special_tokens=False)

    def count_dropped(
        self, dropped: DropStats, rule: str, index: np.ndarray, like: np.ndarray | None = None
    ) -> None:
        """Counts dropped documents and adds the first as examples; `like`: the documents that they are copies of."""
        if not len(index):
            return
        size, tokens = (
            int(values[index].sum()) for values in (self._documents.text_bytes, self._documents.length)
        )
        dropped.add(rule, size, tokens, documents=len(index))
        for number, document in enumerate(index.tolist()):
            if not dropped.should_add_example(rule):
                return
            location = self._describe_location(document)
            if like is not None:
                location += f" (like {self._describe_location(int(like[number]))})"
            dropped.add_example(rule, location, *self.decode(index[number : number + 1]))

    def _describe_location(self, document: int) -> str:
        part = int(self._documents.part[document])
        first = int(np.searchsorted(self._documents.part, part))
        file, number = self._part_files[part].read_column("places")[document - first].tolist()
        return self._context.source.describe_location(self._parts[part], (file, number))


def _compute_repeats(documents: DocumentTable, weights: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Returns how often each document occurs in an epoch; int64 (documents,).

    The fraction of a weight selects that fraction of the documents by the second word of the digest; the first word
    determines the split.
    """
    integers = np.floor(weights).astype(np.int64)
    fractions = (weights - integers)[documents.source]
    uniform = (documents.digest[:, 1] >> np.uint64(11)).astype(np.float64) / 2**53
    return np.where(train, integers[documents.source] + (uniform < fractions), 0)


def _iterate_passes(repeats: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the indices of the documents of each pass: all that occur once, then all that occur twice, and so on."""
    index = np.flatnonzero(repeats)
    yield index
    for number in range(1, int(repeats.max(initial=0))):
        index = index[repeats[index] > number]
        yield index


def _count_split(documents: DocumentTable, index: np.ndarray, names: list[str]) -> dict[str, Any]:
    source = documents.source[index]
    columns = {
        "documents": np.ones(len(index), np.int64),
        "tokens": documents.length[index],
        "text_bytes": documents.text_bytes[index],
    }
    sums = {key: np.zeros(len(names), np.int64) for key in columns}
    for key, values in columns.items():
        np.add.at(sums[key], source, values)
    by_source = {name: {key: int(sums[key][number]) for key in sums} for number, name in enumerate(names)}
    return {**{key: int(values.sum()) for key, values in columns.items()}, "by_source": by_source}


def _split_into_shards(
    split: str, documents: DocumentTable, index: np.ndarray, limit: int
) -> Iterator[ShardLayout]:
    """Yields the shards of a split, each of at most `limit` tokens unless a single document is longer."""
    ends = np.cumsum(documents.length[index])
    first = number = 0
    while first < len(index):
        start = ends[first - 1] if first else 0
        last = max(int(np.searchsorted(ends, start + limit, "right")), first + 1)
        members = index[first:last]
        yield ShardLayout(
            f"{split}-{number:05d}",
            documents.part[members],
            documents.start[members],
            documents.length[members],
            documents.source[members],
        )
        first, number = last, number + 1


def _copy_tokens(context: PreparationContext, shard: ShardLayout) -> Iterator[np.ndarray]:
    """Yields the tokens of a shard's documents; documents adjacent in a part are copied together."""
    ends = shard.start + shard.length
    breaks = np.flatnonzero((shard.part[1:] != shard.part[:-1]) | (shard.start[1:] != ends[:-1])) + 1
    firsts = np.concatenate(([0], breaks))
    lasts = np.concatenate((breaks, [len(shard.part)])) - 1
    for part, start, end in zip(
        shard.part[firsts].tolist(), shard.start[firsts].tolist(), ends[lasts].tolist(), strict=True
    ):
        file = context.get_part_file(part)
        for first in range(start, end, COPY_CHUNK_TOKENS):
            yield file.read_tokens(first, min(first + COPY_CHUNK_TOKENS, end))
