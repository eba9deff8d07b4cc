"""The token store: all tokens of a data set, prepared once, read through memory maps.

A folder per data set and tokenizer. Per split (train, validation) shards of whole documents:

    train-00000.tokens    token ids, little-endian uint16 (uint32 if the vocabulary needs it)
    train-00000.ends      uint64, where each document ends, in tokens from the shard's beginning
    train-00000.sources   uint16, each document's index in the manifest's `sources`
    manifest.json         what is in it, and an xxh3_128 of every file; written last

The rows of a run are made from it at load time, so sequence length and packing change without tokenizing
again, and opening costs milliseconds. Where a manifest is, the store is complete: it is written last.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import xxhash

from krill.atomic import write_json
from krill.config.signature import file_digest
from krill.errors import KrillError, UsageError

FORMAT = "krill-tokens"
VERSION = 1
SPLITS = ("train", "validation")
SHARD_TOKENS = 2**28
"""A shard takes no further document that would lift it above so many tokens (512 MB of uint16)."""

_END_DTYPE, _SOURCE_DTYPE = np.dtype("<u8"), np.dtype("<u2")
MAX_SOURCES = 2**16


class StoreWriter:
    """Writes a store, document by document, in constant memory. The same documents give the same bytes."""

    def __init__(
        self, folder: Path, dtype: np.dtype[Any], sources: list[str], shard_tokens: int = SHARD_TOKENS
    ) -> None:
        self._folder, self._dtype, self._sources = folder, dtype, sources
        self._splits = {
            name: _SplitWriter(folder, name, dtype, len(sources), shard_tokens) for name in SPLITS
        }

    def write(self, split: str, tokens: np.ndarray, source: int, text_bytes: int) -> None:
        """Append a document: its tokens with bos and eos (n,), its source's index, its text's UTF-8 bytes."""
        self._splits[split].write(tokens, source, text_bytes)

    def finish(self, **facts: Any) -> dict[str, Any]:
        """Close the shards, then write and return the manifest; `facts` (JSON values) become part of it.

        `Store` needs facts["tokenizer"] with signature, vocab_size, bos_id, eos_id and pad_id.
        """
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "dtype": self._dtype.name,
            **facts,
            "sources": self._sources,
            "splits": {name: split.finish(self._sources) for name, split in self._splits.items()},
        }
        _sync_folder(self._folder)
        write_json(self._folder / "manifest.json", manifest)
        return manifest


class _SplitWriter:
    def __init__(
        self, folder: Path, name: str, dtype: np.dtype[Any], sources: int, shard_tokens: int
    ) -> None:
        self._folder, self._name, self._dtype, self._limit = folder, name, dtype, shard_tokens
        # Columns: documents, tokens, text bytes.
        self._counts = np.zeros((sources, 3), np.int64)
        self._shards: list[dict[str, Any]] = []
        self._shard: _ShardWriter | None = None

    def write(self, tokens: np.ndarray, source: int, text_bytes: int) -> None:
        if self._shard is not None and self._shard.tokens + len(tokens) > self._limit:
            self._close()
        if self._shard is None:
            self._shard = _ShardWriter(self._folder / f"{self._name}-{len(self._shards):05d}", self._dtype)
        self._shard.write(tokens, source)
        self._counts[source] += (1, len(tokens), text_bytes)

    def finish(self, sources: list[str]) -> dict[str, Any]:
        if self._shard is not None:
            self._close()
        by_source = {name: _counts(row) for name, row in zip(sources, self._counts, strict=True)}
        return {**_counts(self._counts.sum(axis=0)), "by_source": by_source, "shards": self._shards}

    def _close(self) -> None:
        assert self._shard is not None
        self._shards.append(self._shard.close())
        self._shard = None


class _ShardWriter:
    def __init__(self, stem: Path, dtype: np.dtype[Any]) -> None:
        self.tokens = self.documents = 0
        self._stem = stem
        self._files = [
            _HashedFile(_shard_file(stem.parent, stem.name, kind), kind_dtype)
            for kind, kind_dtype in _kinds(dtype)
        ]

    def write(self, tokens: np.ndarray, source: int) -> None:
        self.tokens += len(tokens)
        self.documents += 1
        ids, ends, sources = self._files
        ids.write(tokens)
        ends.write([self.tokens])
        sources.write([source])

    def close(self) -> dict[str, Any]:
        return {
            "name": self._stem.name,
            "documents": self.documents,
            "tokens": self.tokens,
            "xxh3_128": {file.kind: file.close() for file in self._files},
        }


class _HashedFile:
    """A file of numbers that is hashed while it is written, and on disk when it is closed."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.kind = path.suffix[1:]
        self._dtype = dtype
        self._file: IO[bytes] = open(path, "wb", buffering=2**20)  # noqa: SIM115
        self._digest = xxhash.xxh3_128()

    def write(self, values: np.ndarray | list[int]) -> None:
        content = np.asarray(values, self._dtype).tobytes()
        self._digest.update(content)
        self._file.write(content)

    def close(self) -> str:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self._digest.hexdigest()


class Store:
    """A token store opened for reading; `train` and `validation` are its splits. Pickles as its folder."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest
        self.dtype = np.dtype(manifest["dtype"]).newbyteorder("<")
        tokenizer = manifest["tokenizer"]
        self.signature: str = manifest["signature"]
        self.tokenizer_signature: str = tokenizer["signature"]
        self.vocab_size: int = tokenizer["vocab_size"]
        self.bos_id: int = tokenizer["bos_id"]
        self.eos_id: int = tokenizer["eos_id"]
        self.pad_id: int = tokenizer["pad_id"]
        self.sources: list[str] = manifest["sources"]
        self.train = self.split("train")
        self.validation = self.split("validation")

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Open a store; reads the manifest and the sizes of the files only.

        Raises UsageError where there is no store or one of another format, KrillError where a file is missing
        or has another size than the manifest says. `verify` compares the content too.
        """
        store = cls(folder, _read_manifest(folder))
        for path, size, _ in store._files():
            found = path.stat().st_size if path.is_file() else None
            if found != size:
                state = "is missing" if found is None else f"holds {found} bytes, its manifest says {size}"
                raise KrillError(f"{path} {state}. {_again(folder)}")
        return store

    def split(self, name: str) -> Split:
        """The split `name`, train or validation."""
        counts = self.manifest["splits"][name]
        shards = tuple(
            _Shard(self.folder, shard["name"], shard["tokens"], shard["documents"])
            for shard in counts["shards"]
        )
        return Split(
            name=name,
            dtype=self.dtype,
            pad_id=self.pad_id,
            documents=counts["documents"],
            tokens=counts["tokens"],
            text_bytes=counts["text_bytes"],
            shards=shards,
        )

    def verify(self) -> None:
        """Hash every file (about 1 GB/s from disk); raises KrillError naming the first that has changed."""
        for path, _, expected in self._files():
            if file_digest(path) != expected:
                raise KrillError(f"{path} has changed since it was written. {_again(self.folder)}")

    def _files(self) -> list[tuple[Path, int, str]]:
        """(path, size in bytes, hash) of every file that the manifest names."""
        found = []
        for split in self.manifest["splits"].values():
            for shard in split["shards"]:
                for kind, dtype in _kinds(self.dtype):
                    items = shard["tokens"] if kind == "tokens" else shard["documents"]
                    path = _shard_file(self.folder, shard["name"], kind)
                    found.append((path, items * dtype.itemsize, shard["xxh3_128"][kind]))
        return found

    def __reduce__(self) -> tuple[Callable[[Path], Store], tuple[Path]]:
        return Store.open, (self.folder,)


@dataclass(frozen=True)
class _Shard:
    folder: Path
    name: str
    tokens: int
    documents: int

    def read(self, kind: str, dtype: np.dtype[Any]) -> np.ndarray:
        """A memory map of one of the shard's files."""
        return np.memmap(_shard_file(self.folder, self.name, kind), dtype, mode="r")


@dataclass(frozen=True)
class Split:
    """One split of a store: a stream of tokens in documents. Pickles without its memory maps."""

    name: str
    dtype: np.dtype[Any]
    pad_id: int
    documents: int
    """Number of documents."""
    tokens: int
    """Number of tokens, bos and eos of each document included."""
    text_bytes: int
    """UTF-8 bytes of all texts, after the tokenizer's Unicode normalization."""
    shards: tuple[_Shard, ...] = field(repr=False)

    @cached_property
    def ends(self) -> np.ndarray:
        """Where each document ends in the split's stream; uint64 (documents,), strictly rising."""
        parts = [
            shard.read("ends", _END_DTYPE) + np.uint64(start)
            for shard, start in zip(self.shards, self._starts, strict=True)
        ]
        return np.concatenate(parts) if parts else np.zeros(0, np.uint64)

    @cached_property
    def sources(self) -> np.ndarray:
        """Index of each document's source; uint16 (documents,)."""
        parts = [shard.read("sources", _SOURCE_DTYPE) for shard in self.shards]
        return np.concatenate(parts) if parts else np.zeros(0, np.uint16)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Token ids [start, stop) of the stream, across shards; read-only, uint16 or uint32 (stop - start,).

        Raises IndexError outside [0, tokens].
        """
        if not 0 <= start <= stop <= self.tokens:
            raise IndexError(f"tokens [{start}, {stop}) of {self.name}, which has {self.tokens}")
        parts = []
        shard = bisect_right(self._starts, start) - 1
        while start < stop:
            first = self._starts[shard]
            last = min(stop, first + self.shards[shard].tokens)
            parts.append(self._maps[shard][start - first : last - first])
            start, shard = last, shard + 1
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.zeros(0, self.dtype)

    @cached_property
    def _starts(self) -> list[int]:
        """Where each shard starts in the stream."""
        return [0, *np.cumsum([shard.tokens for shard in self.shards]).tolist()][: len(self.shards)]

    @cached_property
    def _maps(self) -> list[np.ndarray]:
        # Plain arrays over the maps: slicing a np.memmap costs ten times as much.
        return [np.asarray(shard.read("tokens", self.dtype)) for shard in self.shards]

    def __getstate__(self) -> dict[str, Any]:
        return {key: self.__dict__[key] for key in self.__dataclass_fields__}


def _kinds(dtype: np.dtype[Any]) -> tuple[tuple[str, np.dtype[Any]], ...]:
    """(suffix, dtype) of a shard's three files."""
    return (("tokens", dtype), ("ends", _END_DTYPE), ("sources", _SOURCE_DTYPE))


def _shard_file(folder: Path, shard: str, kind: str) -> Path:
    return folder / f"{shard}.{kind}"


def _counts(row: np.ndarray) -> dict[str, int]:
    return dict(zip(("documents", "tokens", "text_bytes"), row.tolist(), strict=True))


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        raise UsageError(f"{folder} holds no token store (no manifest.json); krill-preprocess makes one")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        form, version = manifest["format"], manifest["version"]
    except (ValueError, TypeError, KeyError) as error:
        raise KrillError(f"{path} is not a manifest of a token store. {_again(folder)}") from error
    if (form, version) != (FORMAT, VERSION):
        raise UsageError(
            f"{path} is of format {form} {version}, this krill reads {FORMAT} {VERSION}. {_again(folder)}"
        )
    return manifest


def _again(folder: Path) -> str:
    return f"Remove {folder} and give the same command again: the tokens are made anew"


def _sync_folder(folder: Path) -> None:
    """Put the folder's entries on disk, too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
