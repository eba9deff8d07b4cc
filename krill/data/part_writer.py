"""Writes one part of a source as tokens: the work of a worker process, reused by an interrupted preparation.

    read → clean → filter → exact duplicates within the part → encode → min_tokens, max_tokens

This depends on the part only, so parts are written in any order, by any number of workers and machines. Steps that
depend on other parts (duplicates across parts, the split, the order) happen in the merge. A part has two files:

    00012.tokens    ids of the kept documents, each with bos and eos
    00012.npz       length, digest, bytes and location of each document, what was dropped, and the hash of the tokens;
                    written last, with a checksum of each column
"""

from __future__ import annotations

import json
import os
import zipfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import xxhash

from krill.config.schema import DataConfig
from krill.config.signature import hash_file
from krill.data.encoding import EncodedDocuments, Encoder, get_token_dtype
from krill.sources.source import Part, SkippedRecords, Source
from krill.text import minhash
from krill.text.batching import batch_by_size
from krill.text.dedup import SeenDigests, digests_to_array
from krill.text.documents import DocumentRules, DropStats, KeptDocument, iterate_kept_documents
from krill.tokenizer.artifact import TokenizerFolder

BATCH_CHARACTERS = {"hf": 250_000, "fast": 2_000_000}
"""Approximate characters per encoded batch, for Hugging Face tokenizers per thread; gigatoken uses one thread. Large
enough to keep threads busy, small enough for memory: Hugging Face keeps about 100 bytes per token of a batch."""
PREFETCH_BATCHES = 3
"""Number of batches that are read ahead of the one being encoded."""


@dataclass(frozen=True)
class PreparationContext:
    """The settings that all parts of a preparation share; picklable."""

    source: Source
    data: DataConfig
    tokenizer: TokenizerFolder
    folder: Path
    """The folder of the parts; its parent is the store."""
    store_signature: str
    """Signature of the store that the parts belong to."""
    engine: Literal["hf", "fast"] = "hf"
    threads: int = 1
    """Number of threads that encode a part."""

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder, loaded once per process: loading a tokenizer takes longer than encoding a part."""
        return Encoder(self.tokenizer, self.engine)

    def __getstate__(self) -> dict[str, Any]:
        return {key: self.__dict__[key] for key in self.__dataclass_fields__}

    @cached_property
    def rules(self) -> DocumentRules:
        """The document rules, built once per process: a filter may load a model."""
        return DocumentRules(self.data)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the token ids."""
        return get_token_dtype(self.tokenizer.vocab_size)

    def get_part_file(self, index: int) -> PartFile:
        """Returns the file of part `index`, which may not exist yet."""
        return PartFile(self.folder, index, self.dtype)

    def has_part(self, index: int) -> bool:
        """Returns whether part `index` is complete and belongs to this store."""
        return self.get_part_file(index).store_signature == self.store_signature

    def delete_part(self, index: int) -> None:
        """Deletes part `index`, so that it is written again."""
        for kind in ("npz", "tokens"):
            _get_part_path(self.folder, index, kind).unlink(missing_ok=True)


class PartFile:
    """Reads the files of a part."""

    def __init__(self, folder: Path, index: int, dtype: np.dtype[Any]) -> None:
        self._folder, self.index, self._dtype = folder, index, dtype

    @property
    def store_signature(self) -> str | None:
        """Signature of the store that the part belongs to; None if the part is missing or incomplete."""
        try:
            record = self.record
            size = _get_part_path(self._folder, self.index, "tokens").stat().st_size
        except Exception:  # a damaged archive raises errors of a dozen types
            return None
        return record["identity"] if size == record["tokens"] * self._dtype.itemsize else None

    @cached_property
    def record(self) -> dict[str, Any]:
        """The part's record: identity, read, dropped, skipped, unknown_tokens; documents and tokens (stored),
        and the xxh3_128 of the tokens."""
        return json.loads(self.read_column("record").tobytes())

    def is_intact(self) -> bool:
        """Reads both files (about 1 GB/s from disk) and returns whether they are as they were written."""
        try:
            with zipfile.ZipFile(_get_part_path(self._folder, self.index, "npz")) as columns:
                if columns.testzip() is not None:
                    return False
            return hash_file(_get_part_path(self._folder, self.index, "tokens")) == self.record["xxh3_128"]
        except Exception:  # a damaged archive raises errors of a dozen types
            return False

    def read_column(self, name: str) -> np.ndarray:
        """Returns a column: lengths, text_bytes, band0 … (documents,); digests, places (documents, 2)."""
        with np.load(_get_part_path(self._folder, self.index, "npz"), allow_pickle=False) as columns:
            return columns[name]

    def read_tokens(self, start: int, stop: int) -> np.ndarray:
        """Returns the stored ids [start, stop); uint16 or uint32 (stop - start,)."""
        path = _get_part_path(self._folder, self.index, "tokens")
        return np.fromfile(path, self._dtype, stop - start, offset=start * self._dtype.itemsize)


@dataclass
class _DocumentColumns:
    """Values per document of a part, besides its tokens."""

    lengths: list[np.ndarray] = field(default_factory=list)
    text_bytes: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    locations: list[tuple[int, int]] = field(default_factory=list)
    band_keys: list[np.ndarray] = field(default_factory=list)

    def to_arrays(self) -> dict[str, np.ndarray]:
        columns = {
            "lengths": np.concatenate([np.zeros(0, np.int64), *self.lengths]),
            "text_bytes": np.array(self.text_bytes, np.int64),
            "digests": digests_to_array(b"".join(self.digests)),
            "places": np.array(self.locations, np.int64).reshape(-1, 2),
        }
        bands: Iterable[np.ndarray] = np.concatenate(self.band_keys).T if self.band_keys else ()
        return columns | {f"band{number}": keys for number, keys in enumerate(bands)}


def write_parts(
    context: PreparationContext, items: Iterable[tuple[int, Part]], on_progress: Callable[[int, int], None]
) -> Iterator[tuple[tuple[int, Part], None]]:
    """Writes parts, given as (index, part), and yields each when it is finished, in order.

    A second thread encodes (in Rust, without Python's lock) while this one reads and cleans the next batches, across
    part boundaries.

    `on_progress`(documents, bytes of text) is called after each batch. Raises UsageError for input that cannot be
    used, EngineMismatch if the fast engine gives different ids than the reference.
    """
    pending: deque[tuple[PartWriter, list[KeptDocument], Future[EncodedDocuments] | None]] = deque()
    open_writers: deque[PartWriter] = deque()
    limit = BATCH_CHARACTERS[context.engine] * (context.threads if context.engine == "hf" else 1)

    def write_pending(max_pending: int) -> Iterator[tuple[tuple[int, Part], None]]:
        while len(pending) > max_pending:
            writer, batch, encoding = pending.popleft()
            if encoding is not None:
                writer.write_batch(batch, encoding.result())
            else:
                writer.finish()
                open_writers.popleft()
                yield writer.item, None

    with ThreadPoolExecutor(1) as thread:
        try:
            for item in items:
                writer = PartWriter(context, item, on_progress)
                open_writers.append(writer)
                for batch in batch_by_size(
                    writer.read_documents(), limit, lambda document: len(document.text)
                ):
                    texts = [document.text for document in batch]
                    pending.append((writer, batch, thread.submit(context.encoder.encode, texts)))
                    yield from write_pending(PREFETCH_BATCHES)
                pending.append((writer, [], None))
            yield from write_pending(0)
        finally:
            for writer in open_writers:
                writer.discard()


class PartWriter:
    """Writes the files of one part; an unfinished part leaves no files."""

    def __init__(
        self, context: PreparationContext, item: tuple[int, Part], on_progress: Callable[[int, int], None]
    ) -> None:
        self.item = item
        self._context, self._on_progress = context, on_progress
        self._index, self._part = item
        self._signer = (
            minhash.MinHashSigner(context.data.minhash)
            if context.data.minhash.threshold is not None
            else None
        )
        self._dropped, self._skipped, self._read_counts = DropStats(), SkippedRecords(), Counter[str]()
        self._columns, self._unknown_tokens = _DocumentColumns(), 0
        if self._signer is not None:
            self._columns.band_keys.append(self._signer.compute_keys([]))
        self._tokens_hash = xxhash.xxh3_128()
        self._tokens_file: IO[bytes] = open(self._get_partial_path("tokens"), "wb")  # noqa: SIM115 (closed by finish or discard)

    def discard(self) -> None:
        """Removes the files of a part that cannot be finished."""
        with suppress(OSError):  # for example a full disk
            self._tokens_file.close()
        for kind in ("tokens", "npz"):
            self._get_partial_path(kind).unlink(missing_ok=True)

    def read_documents(self) -> Iterator[KeptDocument]:
        """Returns an iterator of the documents that the rules keep, without exact duplicates within the part."""
        source, part = self._context.source, self._part
        return iterate_kept_documents(
            source.read(part, self._skipped),
            self._context.rules,
            SeenDigests(),
            self._dropped,
            self._read_counts,
            lambda location: source.describe_location(part, location),
        )

    def finish(self) -> None:
        """Writes the columns and gives both files their final names."""
        record = {
            "identity": self._context.store_signature,
            "documents": len(self._columns.text_bytes),
            "tokens": sum(int(lengths.sum()) for lengths in self._columns.lengths),
            "xxh3_128": self._tokens_hash.hexdigest(),
            "read": dict(self._read_counts),
            "unknown_tokens": self._unknown_tokens,
            "dropped": self._dropped.by_rule,
            "skipped": self._skipped.reasons,
        }
        self._commit_file(self._tokens_file, "tokens")
        with open(self._get_partial_path("npz"), "wb") as file:
            content = np.frombuffer(json.dumps(record).encode(), np.uint8)
            np.savez(file, allow_pickle=False, record=content, **self._columns.to_arrays())
            self._commit_file(file, "npz")

    def _get_partial_path(self, kind: str) -> Path:
        return _get_part_path(self._context.folder, self._index, f"{kind}.{os.getpid()}")

    def _commit_file(self, file: IO[bytes], kind: str) -> None:
        file.flush()
        os.fsync(file.fileno())
        file.close()
        os.replace(self._get_partial_path(kind), _get_part_path(self._context.folder, self._index, kind))

    def write_batch(self, batch: list[KeptDocument], encoded: EncodedDocuments) -> None:
        """Writes the documents of a batch that are within the token limits."""
        self._read_counts["tokens"] += len(encoded.tokens)
        self._unknown_tokens += self._context.encoder.count_unknown(encoded.tokens)
        keep = self._apply_token_limits(batch, encoded.lengths)
        kept = encoded.select(keep)
        self._tokens_file.write(kept.tokens.data)
        self._tokens_hash.update(kept.tokens.view(np.uint8).data)
        documents = [document for document, is_kept in zip(batch, keep.tolist(), strict=True) if is_kept]
        columns = self._columns
        columns.lengths.append(kept.lengths)
        columns.text_bytes += [
            self._context.encoder.count_text_bytes(item.text, item.content) for item in documents
        ]
        columns.digests += [document.digest for document in documents]
        columns.locations += [document.location for document in documents]
        if self._signer is not None:
            columns.band_keys.append(self._signer.compute_keys([document.text for document in documents]))
        self._on_progress(len(batch), sum(len(document.content) for document in batch))

    def _apply_token_limits(self, batch: list[KeptDocument], lengths: np.ndarray) -> np.ndarray:
        """Counts the documents outside the token limits; returns which are within, bool (documents,)."""
        data = self._context.data
        too_short = lengths - 2 < max(1, data.min_tokens)
        too_long = (
            lengths - 2 > data.max_tokens if data.max_tokens is not None else np.zeros(len(batch), bool)
        )
        for rule, is_dropped in (("min_tokens", too_short), ("max_tokens", too_long)):
            for index in np.flatnonzero(is_dropped).tolist():
                document = batch[index]
                self._dropped.add(rule, len(document.content), int(lengths[index]))
                if self._dropped.should_add_example(rule):
                    location = self._context.source.describe_location(self._part, document.location)
                    self._dropped.add_example(rule, location, document.text)
        return ~(too_short | too_long)


def _get_part_path(folder: Path, index: int, kind: str) -> Path:
    return folder / f"{index:05d}.{kind}"
