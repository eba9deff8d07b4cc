"""The token store: all tokens of a data set, prepared once, read through memory maps.

A folder per data set and tokenizer. Per split (train, validation) shards of whole documents:

    train-00000.tokens    token ids, little-endian uint16 (uint32 if the vocabulary needs it)
    train-00000.ends      uint64, where each document ends, in tokens from the shard's beginning
    train-00000.sources   uint16, each document's index in the manifest's `sources`
    manifest.json         what is in it, and an xxh3_128 of every file; written last

The rows of a run are made from it at load time, so sequence length and packing change without tokenizing
again, and opening costs milliseconds. Where a manifest is, the store is complete: it is written last. How it
was made (when, where, in which time and memory) is in record.json beside it, which is no part of the store.
"""

from __future__ import annotations

import json
import os
import shutil
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from krill.atomic import write_json
from krill.config.signature import hash_file
from krill.errors import KrillError, UsageError

FORMAT = "krill-tokens"
VERSION = 1
SPLITS = ("train", "validation")
SHARD_TOKENS = 2**28
"""A shard takes no further document that would lift it above so many tokens (512 MB of uint16)."""

_END_DTYPE, _SOURCE_DTYPE = np.dtype("<u8"), np.dtype("<u2")
MAX_SOURCES = 2**16


def write_shard(
    folder: Path,
    name: str,
    dtype: np.dtype[Any],
    tokens: Iterable[np.ndarray],
    lengths: np.ndarray,
    sources: np.ndarray,
) -> dict[str, Any]:
    """Write the files of a shard and return its record for the manifest; on disk when it returns.

    tokens: the documents' ids, in pieces of any size. lengths, sources: of each document, (documents,).
    """
    columns: dict[str, Iterable[np.ndarray]] = {
        "tokens": tokens, "ends": [np.cumsum(lengths)], "sources": [sources]
    }  # fmt: skip
    hashes = {
        kind: _write_hashed(
            _get_shard_path(folder, name, kind), (np.asarray(piece, kind_dtype) for piece in columns[kind])
        )
        for kind, kind_dtype in _list_file_kinds(dtype)
    }
    return {"name": name, "documents": len(lengths), "tokens": int(lengths.sum()), "xxh3_128": hashes}


def _write_hashed(path: Path, pieces: Iterable[np.ndarray]) -> str:
    """Write a file, hashed while it is written; returns the hash."""
    digest = xxhash.xxh3_128()
    with open(path, "wb") as file:
        for piece in pieces:
            content = np.ascontiguousarray(piece).view(np.uint8).data
            digest.update(content)
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def has_shard(folder: Path, dtype: np.dtype[Any], record: dict[str, Any]) -> bool:
    """Whether the files of a shard are there and as long as its record says."""
    return all(
        path.is_file() and path.stat().st_size == size
        for path, size, _ in _list_shard_files(folder, dtype, record)
    )


def build_manifest(
    dtype: np.dtype[Any], sources: list[str], splits: dict[str, Any], **facts: Any
) -> dict[str, Any]:
    """The manifest of a store; `facts` (JSON values) become part of it.

    `splits` holds per split its documents, tokens, text_bytes, by_source and shards. `Store` needs
    facts["signature"], and facts["tokenizer"] with signature, vocab_size, bos_id, eos_id and pad_id.
    """
    head = {"format": FORMAT, "version": VERSION, "dtype": dtype.name}
    return {**head, **facts, "sources": sources, "splits": splits}


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest, which makes the folder a store: all else is on disk before."""
    _fsync_folder(folder)
    write_json(folder / "manifest.json", manifest)


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
        self.train = self.get_split("train")
        self.validation = self.get_split("validation")

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Open a store; reads the manifest and the sizes of the files only.

        Raises UsageError where there is no store or one of another format, KrillError where a file is missing
        or has another size than the manifest says. `verify` compares the content too.
        """
        store = cls(folder, _read_manifest(folder))
        for path, size, _ in store._list_files():
            found = path.stat().st_size if path.is_file() else None
            if found != size:
                state = "is missing" if found is None else f"holds {found} bytes, its manifest says {size}"
                raise KrillError(f"{path} {state}. {_suggest_rebuild(folder)}")
        return store

    def get_split(self, name: str) -> Split:
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

    def remove_leftovers(self) -> None:
        """Remove from the folder what is no part of the store: parts, what a killed writer left."""
        kept = {"manifest.json", "record.json", *(path.name for path, _, _ in self._list_files())}
        for path in self.folder.iterdir():
            if path.name in kept:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def verify(self) -> None:
        """Hash every file (about 1 GB/s from disk); raises KrillError naming the first that has changed."""
        for path, _, expected in self._list_files():
            if hash_file(path) != expected:
                raise KrillError(f"{path} has changed since it was written. {_suggest_rebuild(self.folder)}")

    def _list_files(self) -> list[tuple[Path, int, str]]:
        """(path, size in bytes, hash) of every file that the manifest names."""
        shards = [shard for split in self.manifest["splits"].values() for shard in split["shards"]]
        return [file for shard in shards for file in _list_shard_files(self.folder, self.dtype, shard)]

    def __reduce__(self) -> tuple[Callable[[Path], Store], tuple[Path]]:
        return Store.open, (self.folder,)


@dataclass(frozen=True)
class _Shard:
    folder: Path
    name: str
    tokens: int
    documents: int

    def memmap(self, kind: str, dtype: np.dtype[Any]) -> np.ndarray:
        """A memory map of one of the shard's files."""
        return np.memmap(_get_shard_path(self.folder, self.name, kind), dtype, mode="r")

    def copy(self, kind: str, dtype: np.dtype[Any], first: int, last: int) -> np.ndarray:
        """The numbers [first, last) of one of the shard's files."""
        path = _get_shard_path(self.folder, self.name, kind)
        return np.fromfile(path, dtype, last - first, offset=first * dtype.itemsize)


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
            shard.memmap("ends", _END_DTYPE) + np.uint64(start)
            for shard, start in zip(self.shards, self._shard_starts, strict=True)
        ]
        return np.concatenate(parts) if parts else np.zeros(0, np.uint64)

    @cached_property
    def sources(self) -> np.ndarray:
        """Index of each document's source; uint16 (documents,)."""
        parts = [shard.memmap("sources", _SOURCE_DTYPE) for shard in self.shards]
        return np.concatenate(parts) if parts else np.zeros(0, np.uint16)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Token ids [start, stop) of the stream, across shards; read-only, uint16 or uint32 (stop - start,).

        Raises IndexError outside [0, tokens].
        """
        parts = [
            self._token_maps[shard][first:last] for shard, first, last in self._find_segments(start, stop)
        ]
        return _concatenate(parts, self.dtype)

    def copy(self, start: int, stop: int) -> np.ndarray:
        """As `memmap`, from the files instead of the maps: for a pass over everything.

        Pages of a map that were touched count as the process's memory until the system wants them.
        """
        parts = [
            self.shards[shard].copy("tokens", self.dtype, first, last)
            for shard, first, last in self._find_segments(start, stop)
        ]
        return _concatenate(parts, self.dtype)

    def _find_segments(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """(index of the shard, first, last) of the pieces of [start, stop)."""
        if not 0 <= start <= stop <= self.tokens:
            raise IndexError(f"tokens [{start}, {stop}) of {self.name}, which has {self.tokens}")
        found = []
        shard = bisect_right(self._shard_starts, start) - 1
        while start < stop:
            first = self._shard_starts[shard]
            last = min(stop, first + self.shards[shard].tokens)
            found.append((shard, start - first, last - first))
            start, shard = last, shard + 1
        return found

    @cached_property
    def _shard_starts(self) -> list[int]:
        """Where each shard starts in the stream."""
        return [0, *np.cumsum([shard.tokens for shard in self.shards]).tolist()][: len(self.shards)]

    @cached_property
    def _token_maps(self) -> list[np.ndarray]:
        # Plain arrays over the maps: slicing a np.memmap costs ten times as much.
        return [np.asarray(shard.memmap("tokens", self.dtype)) for shard in self.shards]

    def __getstate__(self) -> dict[str, Any]:
        return {key: self.__dict__[key] for key in self.__dataclass_fields__}


def _concatenate(parts: list[np.ndarray], dtype: np.dtype[Any]) -> np.ndarray:
    """The pieces one after the other; one alone is not copied."""
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.zeros(0, dtype)


def _list_file_kinds(dtype: np.dtype[Any]) -> tuple[tuple[str, np.dtype[Any]], ...]:
    """(suffix, dtype) of a shard's three files."""
    return (("tokens", dtype), ("ends", _END_DTYPE), ("sources", _SOURCE_DTYPE))


def _list_shard_files(
    folder: Path, dtype: np.dtype[Any], shard: dict[str, Any]
) -> list[tuple[Path, int, str]]:
    """(path, size in bytes, hash) of the files of a shard."""
    found = []
    for kind, kind_dtype in _list_file_kinds(dtype):
        items = shard["tokens"] if kind == "tokens" else shard["documents"]
        found.append(
            (
                _get_shard_path(folder, shard["name"], kind),
                items * kind_dtype.itemsize,
                shard["xxh3_128"][kind],
            )
        )
    return found


def _get_shard_path(folder: Path, shard: str, kind: str) -> Path:
    return folder / f"{shard}.{kind}"


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        raise UsageError(f"{folder} holds no token store (no manifest.json); krill-preprocess makes one")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        form, version = manifest["format"], manifest["version"]
    except (ValueError, TypeError, KeyError) as error:
        raise KrillError(f"{path} is not a manifest of a token store. {_suggest_rebuild(folder)}") from error
    if (form, version) != (FORMAT, VERSION):
        raise UsageError(
            f"{path} is of format {form} {version}, this krill reads {FORMAT} {VERSION}. {_suggest_rebuild(folder)}"
        )
    return manifest


def _suggest_rebuild(folder: Path) -> str:
    return f"Remove {folder} and give the same command again: the tokens are made anew"


def _fsync_folder(folder: Path) -> None:
    """Put the folder's entries on disk, too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
