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

from krill.config.schema import Data
from krill.data.encoding import Encoded, Encoder, token_dtype
from krill.sources.source import Part, Skipped, Source
from krill.text import near
from krill.text.batches import batches
from krill.text.dedup import Duplicates, words
from krill.text.documents import Dropped, Rules, Usable, usable_documents
from krill.tokenizer.folder import TokenizerFolder

BATCH_CHARACTERS = {"hf": 250_000, "fast": 2_000_000}
"""Documents are encoded in batches of about so many characters, with Hugging Face tokenizers per thread: enough work,
flat memory (they keep about 100 bytes a token until a batch is done). gigatoken uses one thread."""
AHEAD = 3
"""Batches that are read ahead of the one that is encoded."""


@dataclass(frozen=True)
class Job:
    """What every part of a preparation has in common; pickles."""

    source: Source
    data: Data
    tokenizer: TokenizerFolder
    folder: Path
    """Where the parts go."""
    identity: str
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
    def rules(self) -> Rules:
        """Made once per process: a filter may load a model."""
        return Rules(self.data)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the token ids."""
        return token_dtype(self.tokenizer.vocab_size)

    def part(self, index: int) -> PartFile:
        """Part `index`, which may not have been made."""
        return PartFile(self.folder, index, self.dtype)

    def has(self, index: int) -> bool:
        """Whether part `index` has been made for this store."""
        return self.part(index).identity == self.identity

    def forget(self, index: int) -> None:
        """Have part `index` made again."""
        for kind in ("npz", "tokens"):
            _path(self.folder, index, kind).unlink(missing_ok=True)


class PartFile:
    """A part that has been made."""

    def __init__(self, folder: Path, index: int, dtype: np.dtype[Any]) -> None:
        self._folder, self.index, self._dtype = folder, index, dtype

    @property
    def identity(self) -> str | None:
        """The store that it was made for; None if it is not there, not whole."""
        try:
            record = self.record
            size = _path(self._folder, self.index, "tokens").stat().st_size
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        return record["identity"] if size == record["tokens"] * self._dtype.itemsize else None

    @cached_property
    def record(self) -> dict[str, Any]:
        """identity, documents, tokens (stored), read, dropped, skipped."""
        return json.loads(self.column("record").tobytes())

    def column(self, name: str) -> np.ndarray:
        """lengths, text_bytes, band0 … (documents,); digests, places (documents, 2)."""
        with np.load(_path(self._folder, self.index, "npz"), allow_pickle=False) as columns:
            return columns[name]

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """The stored ids [start, stop); uint16 or uint32 (stop - start,)."""
        path = _path(self._folder, self.index, "tokens")
        return np.fromfile(path, self._dtype, stop - start, offset=start * self._dtype.itemsize)


@dataclass
class _Columns:
    """What is kept of each document of a part beside its tokens."""

    lengths: list[np.ndarray] = field(default_factory=list)
    text_bytes: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)
    keys: list[np.ndarray] = field(default_factory=list)

    def arrays(self) -> dict[str, np.ndarray]:
        found = {
            "lengths": np.concatenate([np.zeros(0, np.int64), *self.lengths]),
            "text_bytes": np.array(self.text_bytes, np.int64),
            "digests": words(b"".join(self.digests)),
            "places": np.array(self.places, np.int64).reshape(-1, 2),
        }
        bands: Iterable[np.ndarray] = np.concatenate(self.keys).T if self.keys else ()
        return found | {f"band{number}": keys for number, keys in enumerate(bands)}


def make_parts(
    job: Job, items: Iterable[tuple[int, Part]], advance: Callable[[int, int], None]
) -> Iterator[tuple[tuple[int, Part], None]]:
    """Make parts, (index, part) each, and yield each as it is done, in order.

    A thread of Rust encodes while Python reads and cleans what comes next, beyond the end of a part as well.
    `advance`(documents, bytes of text) is called now and then. Raises UsageError for input that cannot be used,
    `engines.Differs` if the fast engine errs.
    """
    waiting: deque[tuple[_Maker, list[Usable], Future[Encoded] | None]] = deque()
    opened: deque[_Maker] = deque()
    limit = BATCH_CHARACTERS[job.engine] * (job.threads if job.engine == "hf" else 1)

    def settle(most: int) -> Iterator[tuple[tuple[int, Part], None]]:
        while len(waiting) > most:
            maker, batch, encoding = waiting.popleft()
            if encoding is not None:
                maker.write(batch, encoding.result())
            else:
                maker.finish()
                opened.popleft()
                yield maker.item, None

    with ThreadPoolExecutor(1) as thread:
        try:
            for item in items:
                maker = _Maker(job, item, advance)
                opened.append(maker)
                for batch in batches(maker.documents(), limit, lambda document: len(document.text)):
                    texts = [document.text for document in batch]
                    waiting.append((maker, batch, thread.submit(job.encoder.encode, texts)))
                    yield from settle(AHEAD)
                waiting.append((maker, [], None))
            yield from settle(0)
        finally:
            for maker in opened:
                maker.discard()


class _Maker:
    """Writes the tokens of one part and counts; what is not finished leaves nothing."""

    def __init__(self, job: Job, item: tuple[int, Part], advance: Callable[[int, int], None]) -> None:
        self.item = item
        self._job, self._advance = job, advance
        self._index, self._part = item
        self._signer = near.Signer(job.data.near) if job.data.near.threshold is not None else None
        self._dropped, self._skipped, self._read = Dropped(), Skipped(), Counter[str]()
        self._columns = _Columns()
        if self._signer is not None:
            self._columns.keys.append(self._signer.keys([]))
        self._file: IO[bytes] = open(self._partial("tokens"), "wb")  # noqa: SIM115 (closed by finish or discard)

    def discard(self) -> None:
        """Leave nothing of a part that cannot be finished."""
        with suppress(OSError):  # a full disk again
            self._file.close()
        for kind in ("tokens", "npz"):
            self._partial(kind).unlink(missing_ok=True)

    def documents(self) -> Iterator[Usable]:
        """The documents of the part that are kept by the rules, each text once."""
        source, part = self._job.source, self._part
        return usable_documents(
            self._counted(),
            self._job.rules,
            Duplicates(),
            self._dropped,
            lambda place: source.spell(part, place),
        )

    def finish(self) -> None:
        """Give the part its name."""
        record = {
            "identity": self._job.identity,
            "documents": len(self._columns.text_bytes),
            "tokens": sum(int(lengths.sum()) for lengths in self._columns.lengths),
            "read": dict(self._read),
            "dropped": self._dropped.rules,
            "skipped": self._skipped.reasons,
        }
        self._keep(self._file, "tokens")
        with open(self._partial("npz"), "wb") as file:
            content = np.frombuffer(json.dumps(record).encode(), np.uint8)
            np.savez(file, allow_pickle=False, record=content, **self._columns.arrays())
            self._keep(file, "npz")

    def _partial(self, kind: str) -> Path:
        return _path(self._job.folder, self._index, f"{kind}.{os.getpid()}")

    def _keep(self, file: IO[bytes], kind: str) -> None:
        file.flush()
        os.fsync(file.fileno())
        file.close()
        os.replace(self._partial(kind), _path(self._job.folder, self._index, kind))

    def _counted(self) -> Iterator[Any]:
        for document in self._job.source.read(self._part, self._skipped):
            self._read["documents"] += 1
            yield document

    def write(self, batch: list[Usable], encoded: Encoded) -> None:
        """Store those of a batch that have neither too few nor too many tokens."""
        self._read["tokens"] += len(encoded.tokens)
        keep = self._long_enough(batch, encoded.lengths)
        kept = encoded.select(keep)
        self._file.write(kept.tokens.data)
        documents = [document for document, stays in zip(batch, keep.tolist(), strict=True) if stays]
        columns = self._columns
        columns.lengths.append(kept.lengths)
        columns.text_bytes += [self._job.encoder.text_bytes(item.text, item.content) for item in documents]
        columns.digests += [document.digest for document in documents]
        columns.places += [document.place for document in documents]
        if self._signer is not None:
            columns.keys.append(self._signer.keys([document.text for document in documents]))
        self._advance(len(batch), sum(len(document.content) for document in batch))

    def _long_enough(self, batch: list[Usable], lengths: np.ndarray) -> np.ndarray:
        """Where a document has neither too few nor too many tokens; bool (documents,)."""
        data = self._job.data
        short = lengths - 2 < max(1, data.min_tokens)
        long = lengths - 2 > data.max_tokens if data.max_tokens is not None else np.zeros(len(batch), bool)
        for rule, where in (("min_tokens", short), ("max_tokens", long)):
            for index in np.flatnonzero(where).tolist():
                document = batch[index]
                self._dropped.add(rule, len(document.content), int(lengths[index]))
                if self._dropped.wants_example(rule):
                    place = self._job.source.spell(self._part, document.place)
                    self._dropped.show(rule, place, document.text)
        return ~(short | long)


def _path(folder: Path, index: int, kind: str) -> Path:
    return folder / f"{index:05d}.{kind}"
