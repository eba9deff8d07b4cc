"""One part of a source, from text to tokens: what a worker does, what a killed preparation finds again.

    read → clean → filter → exact duplicates within the part → encode → min_tokens, max_tokens

All of it depends on the part alone, so parts are made in any order, by any number of workers and machines. What
depends on other parts (duplicates across them, the split, the order) is done when they are merged. Two files:

    00012.tokens    ids of the documents that are left, each with bos and eos
    00012.npz       per document its length, digest, bytes and place; what was dropped; written last
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

from krill.config.schema import DataConfig
from krill.data.encoding import EncodedDocuments, Encoder, get_token_dtype
from krill.sources.source import Part, SkippedRecords, Source
from krill.text import minhash
from krill.text.batching import batch_by_size
from krill.text.dedup import SeenDigests, digests_to_array
from krill.text.documents import DocumentRules, DropStats, KeptDocument, iterate_kept_documents
from krill.tokenizer.artifact import TokenizerFolder

BATCH_CHARACTERS = {"hf": 250_000, "fast": 2_000_000}
"""Documents are encoded in batches of about so many characters, with Hugging Face tokenizers per thread: enough work,
flat memory (they keep about 100 bytes a token until a batch is done). gigatoken uses one thread."""
PREFETCH_BATCHES = 3
"""Batches that are read ahead of the one that is encoded."""


@dataclass(frozen=True)
class PreparationContext:
    """What every part of a preparation has in common; pickles."""

    source: Source
    data: DataConfig
    tokenizer: TokenizerFolder
    folder: Path
    """Where the parts go."""
    store_signature: str
    """Signature of the store that they are for."""
    engine: Literal["hf", "fast"] = "hf"
    threads: int = 1
    """Threads that encode a part."""

    @cached_property
    def encoder(self) -> Encoder:
        """Made once per process: reading a tokenizer takes longer than encoding a part."""
        return Encoder(self.tokenizer, self.engine)

    def __getstate__(self) -> dict[str, Any]:
        return {key: self.__dict__[key] for key in self.__dataclass_fields__}

    @cached_property
    def rules(self) -> DocumentRules:
        """Made once per process: a filter may load a model."""
        return DocumentRules(self.data)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the token ids."""
        return get_token_dtype(self.tokenizer.vocab_size)

    def get_part_file(self, index: int) -> PartFile:
        """Part `index`, which may not have been made."""
        return PartFile(self.folder, index, self.dtype)

    def has_part(self, index: int) -> bool:
        """Whether part `index` has been made for this store."""
        return self.get_part_file(index).store_signature == self.store_signature

    def delete_part(self, index: int) -> None:
        """Have part `index` made again."""
        for kind in ("npz", "tokens"):
            _get_part_path(self.folder, index, kind).unlink(missing_ok=True)


class PartFile:
    """A part that has been made."""

    def __init__(self, folder: Path, index: int, dtype: np.dtype[Any]) -> None:
        self._folder, self.index, self._dtype = folder, index, dtype

    @property
    def store_signature(self) -> str | None:
        """The store that it was made for; None if it is not there, not whole."""
        try:
            record = self.record
            size = _get_part_path(self._folder, self.index, "tokens").stat().st_size
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        return record["identity"] if size == record["tokens"] * self._dtype.itemsize else None

    @cached_property
    def record(self) -> dict[str, Any]:
        """identity, documents, tokens (stored), read, dropped, skipped."""
        return json.loads(self.read_column("record").tobytes())

    def read_column(self, name: str) -> np.ndarray:
        """lengths, text_bytes, band0 … (documents,); digests, places (documents, 2)."""
        with np.load(_get_part_path(self._folder, self.index, "npz"), allow_pickle=False) as columns:
            return columns[name]

    def read_tokens(self, start: int, stop: int) -> np.ndarray:
        """The stored ids [start, stop); uint16 or uint32 (stop - start,)."""
        path = _get_part_path(self._folder, self.index, "tokens")
        return np.fromfile(path, self._dtype, stop - start, offset=start * self._dtype.itemsize)


@dataclass
class _DocumentColumns:
    """What is kept of each document of a part beside its tokens."""

    lengths: list[np.ndarray] = field(default_factory=list)
    text_bytes: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    locations: list[tuple[int, int]] = field(default_factory=list)
    keys: list[np.ndarray] = field(default_factory=list)

    def to_arrays(self) -> dict[str, np.ndarray]:
        found = {
            "lengths": np.concatenate([np.zeros(0, np.int64), *self.lengths]),
            "text_bytes": np.array(self.text_bytes, np.int64),
            "digests": digests_to_array(b"".join(self.digests)),
            "places": np.array(self.locations, np.int64).reshape(-1, 2),
        }
        bands: Iterable[np.ndarray] = np.concatenate(self.keys).T if self.keys else ()
        return found | {f"band{number}": keys for number, keys in enumerate(bands)}


def write_parts(
    job: PreparationContext, items: Iterable[tuple[int, Part]], advance: Callable[[int, int], None]
) -> Iterator[tuple[tuple[int, Part], None]]:
    """Make parts, (index, part) each, and yield each as it is done, in order.

    A thread of Rust encodes while Python reads and cleans what comes next, beyond the end of a part as well.
    `advance`(documents, bytes of text) is called now and then. Raises UsageError for input that cannot be used,
    `engines.Differs` if the fast engine errs.
    """
    waiting: deque[tuple[PartWriter, list[KeptDocument], Future[EncodedDocuments] | None]] = deque()
    opened: deque[PartWriter] = deque()
    limit = BATCH_CHARACTERS[job.engine] * (job.threads if job.engine == "hf" else 1)

    def settle(most: int) -> Iterator[tuple[tuple[int, Part], None]]:
        while len(waiting) > most:
            maker, batch, encoding = waiting.popleft()
            if encoding is not None:
                maker.write_batch(batch, encoding.result())
            else:
                maker.finish()
                opened.popleft()
                yield maker.item, None

    with ThreadPoolExecutor(1) as thread:
        try:
            for item in items:
                maker = PartWriter(job, item, advance)
                opened.append(maker)
                for batch in batch_by_size(
                    maker.read_documents(), limit, lambda document: len(document.text)
                ):
                    texts = [document.text for document in batch]
                    waiting.append((maker, batch, thread.submit(job.encoder.encode, texts)))
                    yield from settle(PREFETCH_BATCHES)
                waiting.append((maker, [], None))
            yield from settle(0)
        finally:
            for maker in opened:
                maker.discard()


class PartWriter:
    """Writes the tokens of one part and counts; what is not finished leaves nothing."""

    def __init__(
        self, job: PreparationContext, item: tuple[int, Part], advance: Callable[[int, int], None]
    ) -> None:
        self.item = item
        self._context, self._on_progress = job, advance
        self._index, self._part = item
        self._signer = (
            minhash.MinHashSigner(job.data.minhash) if job.data.minhash.threshold is not None else None
        )
        self._dropped, self._skipped, self._read_counts = DropStats(), SkippedRecords(), Counter[str]()
        self._columns = _DocumentColumns()
        if self._signer is not None:
            self._columns.keys.append(self._signer.keys([]))
        self._tokens_file: IO[bytes] = open(self._get_partial_path("tokens"), "wb")  # noqa: SIM115 (closed by finish or discard)

    def discard(self) -> None:
        """Leave nothing of a part that cannot be finished."""
        with suppress(OSError):  # a full disk again
            self._tokens_file.close()
        for kind in ("tokens", "npz"):
            self._get_partial_path(kind).unlink(missing_ok=True)

    def read_documents(self) -> Iterator[KeptDocument]:
        """The documents of the part that are kept by the rules, each text once."""
        source, part = self._context.source, self._part
        return iterate_kept_documents(
            self._iterate_source_documents(),
            self._context.rules,
            SeenDigests(),
            self._dropped,
            lambda place: source.describe_location(part, place),
        )

    def finish(self) -> None:
        """Give the part its name."""
        record = {
            "identity": self._context.store_signature,
            "documents": len(self._columns.text_bytes),
            "tokens": sum(int(lengths.sum()) for lengths in self._columns.lengths),
            "read": dict(self._read_counts),
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

    def _iterate_source_documents(self) -> Iterator[Any]:
        for document in self._context.source.read(self._part, self._skipped):
            self._read_counts["documents"] += 1
            yield document

    def write_batch(self, batch: list[KeptDocument], encoded: EncodedDocuments) -> None:
        """Store those of a batch that have neither too few nor too many tokens."""
        self._read_counts["tokens"] += len(encoded.tokens)
        keep = self._apply_token_limits(batch, encoded.lengths)
        kept = encoded.select(keep)
        self._tokens_file.write(kept.tokens.data)
        documents = [document for document, stays in zip(batch, keep.tolist(), strict=True) if stays]
        columns = self._columns
        columns.lengths.append(kept.lengths)
        columns.text_bytes += [
            self._context.encoder.count_text_bytes(item.text, item.content) for item in documents
        ]
        columns.digests += [document.digest for document in documents]
        columns.locations += [document.location for document in documents]
        if self._signer is not None:
            columns.keys.append(self._signer.keys([document.text for document in documents]))
        self._on_progress(len(batch), sum(len(document.content) for document in batch))

    def _apply_token_limits(self, batch: list[KeptDocument], lengths: np.ndarray) -> np.ndarray:
        """Where a document has neither too few nor too many tokens; bool (documents,)."""
        data = self._context.data
        short = lengths - 2 < max(1, data.min_tokens)
        long = lengths - 2 > data.max_tokens if data.max_tokens is not None else np.zeros(len(batch), bool)
        for rule, where in (("min_tokens", short), ("max_tokens", long)):
            for index in np.flatnonzero(where).tolist():
                document = batch[index]
                self._dropped.add(rule, len(document.content), int(lengths[index]))
                if self._dropped.should_add_example(rule):
                    place = self._context.source.describe_location(self._part, document.location)
                    self._dropped.add_example(rule, place, document.text)
        return ~(short | long)


def _get_part_path(folder: Path, index: int, kind: str) -> Path:
    return folder / f"{index:05d}.{kind}"
