"""The parts of a source to one token store: what depends on more than one part is decided here, then written.

    exact duplicates of all parts → near duplicates → split → weights → order → shards

Deciding takes about 90 bytes of memory a document and looks at no token (but of near duplicates); each shard
of the store is then copied together from the parts, by any worker, and found again by a merge that was killed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from krill.atomic import write_json
from krill.data import store
from krill.data.part_writer import PartFile, PreparationContext
from krill.sources.source import Part, SkippedRecords
from krill.text import minhash
from krill.text.dedup import find_first_copies, is_validation
from krill.text.documents import DropStats

COPY_CHUNK_TOKENS = 2**22
"""So many tokens are copied at once."""


@dataclass(frozen=True)
class DocumentTable:
    """What is known of every document of every part, in order; arrays (documents,)."""

    part: np.ndarray
    """Index of its part."""
    start: np.ndarray
    """Where its tokens begin in the part's."""
    length: np.ndarray
    text_bytes: np.ndarray
    digest: np.ndarray
    """(documents, 2), see `dedup.words`."""
    source: np.ndarray


class ShardLayout(NamedTuple):
    """One shard of the store: which documents it holds, in order."""

    name: str
    part: np.ndarray
    start: np.ndarray
    length: np.ndarray
    source: np.ndarray


@dataclass(frozen=True)
class StoreLayout:
    """What the store will hold."""

    splits: dict[str, dict[str, Any]]
    """Per split documents, tokens, text_bytes, by_source: what the manifest says."""
    shards: dict[str, list[ShardLayout]]
    read_counts: dict[str, int]
    """Documents and tokens that were read."""
    repeated_counts: dict[str, int]
    """Documents and tokens that are there again, for their source's weight."""
    dropped: DropStats
    skipped: SkippedRecords


def compute_store_layout(job: PreparationContext, parts: Sequence[Part], shard_tokens: int) -> StoreLayout:
    """Decide what becomes of every document; all parts must have been made."""
    made = [job.get_part_file(index) for index in range(len(parts))]
    documents = _build_document_table(made, parts)
    dropped, skipped = DropStats(), SkippedRecords()
    read = {"documents": 0, "tokens": 0}
    for part in made:
        dropped.merge(part.record["dropped"])
        skipped.merge(part.record["skipped"])
        for key in read:
            read[key] += part.record["read"].get(key, 0)
    kept = find_first_copies(documents.digest)
    texts = _StoredTexts(job, parts, made, documents)
    texts.count_dropped(dropped, "duplicate", np.flatnonzero(~kept))
    if job.data.minhash.threshold is not None:
        _drop_near_duplicates(job, made, kept, texts, dropped)
    validation = is_validation(documents.digest, job.data.validation_fraction)
    passes = _compute_repeats(documents, np.array(job.source.weights), kept & ~validation)
    texts.count_dropped(dropped, "weight", np.flatnonzero(kept & ~validation & (passes == 0)))
    order = {
        "train": np.concatenate(
            [np.flatnonzero(passes > turn) for turn in range(max(1, passes.max(initial=0)))]
        ),
        "validation": np.flatnonzero(kept & validation),
    }
    again = order["train"][np.count_nonzero(passes) :]
    return StoreLayout(
        splits={name: _count_split(documents, index, job.source.names) for name, index in order.items()},
        shards={
            name: list(_split_into_shards(name, documents, index, shard_tokens))
            for name, index in order.items()
        },
        read_counts=read,
        repeated_counts={"documents": len(again), "tokens": int(documents.length[again].sum())},
        dropped=dropped,
        skipped=skipped,
    )


def write_shards(
    job: PreparationContext, shards: Iterable[ShardLayout], advance: Callable[[int, int], None]
) -> Iterator[tuple[ShardLayout, dict[str, Any]]]:
    """Write shards of the store beside the folder of the parts; yields each with its record.

    A finished one is found again: its record is among the parts.
    """
    for shard in shards:
        yield shard, _write_or_reuse_shard(job, shard)


def _write_or_reuse_shard(job: PreparationContext, shard: ShardLayout) -> dict[str, Any]:
    folder = job.folder.parent
    done = job.folder / f"{shard.name}.json"
    if done.is_file():
        found = json.loads(done.read_text(encoding="utf-8"))
        if found["identity"] == job.store_signature and store.has_shard(folder, job.dtype, found["record"]):
            return found["record"]
    record = store.write_shard(
        folder, shard.name, job.dtype, _copy_tokens(job, shard), shard.length, shard.source
    )
    write_json(done, {"identity": job.store_signature, "record": record})
    return record


def _build_document_table(made: Sequence[PartFile], parts: Sequence[Part]) -> DocumentTable:
    lengths = [part.read_column("lengths") for part in made]
    counts = [len(part) for part in lengths]
    sources = np.array([part.source for part in parts], np.uint16)
    return DocumentTable(
        part=np.repeat(np.arange(len(made), dtype=np.int32), counts),
        start=np.concatenate([np.zeros(0, np.int64), *(np.cumsum(part) - part for part in lengths)]),
        length=np.concatenate([np.zeros(0, np.int64), *lengths]),
        text_bytes=np.concatenate(
            [np.zeros(0, np.int64), *(part.read_column("text_bytes") for part in made)]
        ),
        digest=np.concatenate(
            [np.zeros((0, 2), ">u8"), *(part.read_column("digests") for part in made)]
        ).astype(np.uint64),
        source=np.repeat(sources, counts),
    )


def _drop_near_duplicates(
    job: PreparationContext,
    made: Sequence[PartFile],
    kept: np.ndarray,
    texts: _StoredTexts,
    dropped: DropStats,
) -> None:
    """Clear `kept` where a document is a near copy of an earlier one that is kept."""
    candidates = np.flatnonzero(kept)

    def band(number: int) -> np.ndarray:
        return np.concatenate([part.read_column(f"band{number}") for part in made])[candidates]

    copies = minhash.find_near_duplicates(
        len(candidates),
        band,
        lambda index: texts.decode(candidates[np.asarray(index, np.int64)]),
        job.data.minhash,
    )
    copy, first = candidates[copies >= 0], candidates[copies[copies >= 0]]
    kept[copy] = False
    texts.count_dropped(dropped, "near duplicate", copy, first)


class _StoredTexts:
    """The texts of stored documents, decoded from their tokens."""

    def __init__(
        self,
        job: PreparationContext,
        parts: Sequence[Part],
        made: Sequence[PartFile],
        documents: DocumentTable,
    ) -> None:
        self._context, self._parts, self._part_files, self._documents = job, parts, made, documents

    def decode(self, index: np.ndarray) -> list[str]:
        """The texts of some documents."""
        ids = []
        for document in index.tolist():
            start, length = int(self._documents.start[document]), int(self._documents.length[document])
            part = self._part_files[self._documents.part[document]]
            ids.append(part.tokens(start + 1, start + length - 1).tolist())
        return self._context.tokenizer.backend.decode_batch(ids, skip_special_tokens=False)

    def count_dropped(
        self, dropped: DropStats, rule: str, index: np.ndarray, like: np.ndarray | None = None
    ) -> None:
        """Count documents that are dropped, the first few as examples; `like`: those that they are copies of."""
        if not len(index):
            return
        size, tokens = (
            int(values[index].sum()) for values in (self._documents.text_bytes, self._documents.length)
        )
        dropped.add(rule, size, tokens, documents=len(index))
        for number, document in enumerate(index.tolist()):
            if not dropped.should_add_example(rule):
                return
            place = self._describe_location(document)
            if like is not None:
                place += f" (like {self._describe_location(int(like[number]))})"
            dropped.add_example(rule, place, *self.decode(index[number : number + 1]))

    def _describe_location(self, document: int) -> str:
        part = int(self._documents.part[document])
        first = int(np.searchsorted(self._documents.part, part))
        file, number = self._part_files[part].read_column("places")[document - first].tolist()
        return self._context.source.describe_location(self._parts[part], (file, number))


def _compute_repeats(documents: DocumentTable, weights: np.ndarray, train: np.ndarray) -> np.ndarray:
    """How often each document comes in an epoch; int (documents,).

    A weight's fraction is a share of the documents, chosen by the digest's second word: the first chose the
    split.
    """
    whole = np.floor(weights).astype(np.int64)
    share = (weights - whole)[documents.source]
    chance = (documents.digest[:, 1] >> np.uint64(11)).astype(np.float64) / 2**53
    return np.where(train, whole[documents.source] + (chance < share), 0)


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
    by_source = {name: {key: int(sums[key][place]) for key in sums} for place, name in enumerate(names)}
    return {**{key: int(values.sum()) for key, values in columns.items()}, "by_source": by_source}


def _split_into_shards(
    split: str, documents: DocumentTable, index: np.ndarray, limit: int
) -> Iterator[ShardLayout]:
    """The shards of a split: one takes no further document that would lift it above `limit` tokens."""
    ends = np.cumsum(documents.length[index])
    first = number = 0
    while first < len(index):
        filled = ends[first - 1] if first else 0
        last = max(int(np.searchsorted(ends, filled + limit, "right")), first + 1)
        chosen = index[first:last]
        yield ShardLayout(
            f"{split}-{number:05d}",
            documents.part[chosen],
            documents.start[chosen],
            documents.length[chosen],
            documents.source[chosen],
        )
        first, number = last, number + 1


def _copy_tokens(job: PreparationContext, shard: ShardLayout) -> Iterator[np.ndarray]:
    """The tokens of a shard's documents; runs that lie together in a part are copied together."""
    ends = shard.start + shard.length
    breaks = np.flatnonzero((shard.part[1:] != shard.part[:-1]) | (shard.start[1:] != ends[:-1])) + 1
    firsts = np.concatenate(([0], breaks))
    lasts = np.concatenate((breaks, [len(shard.part)])) - 1
    for part, start, end in zip(
        shard.part[firsts].tolist(), shard.start[firsts].tolist(), ends[lasts].tolist(), strict=True
    ):
        file = job.get_part_file(part)
        for begin in range(start, end, COPY_CHUNK_TOKENS):
            yield file.read_tokens(begin, min(begin + COPY_CHUNK_TOKENS, end))
