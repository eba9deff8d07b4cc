"""The token store: all tokens of a dataset, prepared once and read through memory maps.

One folder per dataset and tokenizer. Each split (train, validation) has shards of complete documents:

    train-00000.tokens    token ids, little-endian uint16 (uint32 if the vocabulary needs it)
    train-00000.ends      uint64, end of each document in tokens from the shard's beginning
    train-00000.sources   uint16, each document's index in the manifest's `sources`
    manifest.json         the content, an xxh3_128 of every file, and a checksum of itself; written last

The rows of a run are packed when it is loaded, so sequence length and packing can change without tokenizing again,
and opening takes milliseconds. A store with a manifest is complete. How it was prepared (host, time, memory) is in
record.json in the same folder, which is not part of the store's content.
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
from typing import Any, Literal

import numpy as np
import xxhash
from pydantic import BaseModel, NonNegativeInt, PositiveInt, ValidationError

from krill.checksum import ChecksumError, read_checksummed_json, write_checksummed_json
from krill.config.signature import compute_signature, hash_file
from krill.errors import KrillError, UsageError

FORMAT = "krill-tokens"
VERSION = 2
"""Part of the signature of every store. 2: the manifest has a checksum."""
SPLITS = ("train", "validation")
SHARD_TOKENS = 2**28
"""Maximum tokens of a shard, unless a single document is longer (512 MB of uint16)."""

_END_DTYPE, _SOURCE_DTYPE = np.dtype("<u8"), np.dtype("<u2")
MAX_SOURCES = 2**16
"""Number of indices in a file of sources, uint16."""


class _Record(BaseModel, strict=True):
    """A part of the manifest; keys that are not listed are allowed."""


class _Counts(_Record):
    documents: NonNegativeInt
    tokens: NonNegativeInt
    text_bytes: NonNegativeInt


class _ShardHashes(_Record):
    tokens: str
    ends: str
    sources: str


class _ShardRecord(_Record):
    name: str
    documents: PositiveInt
    tokens: PositiveInt
    xxh3_128: _ShardHashes


class _SplitRecord(_Counts):
    by_source: dict[str, _Counts]
    shards: list[_ShardRecord]


class _Splits(_Record):
    train: _SplitRecord
    validation: _SplitRecord


class _TokenizerRecord(_Record):
    signature: str
    vocab_size: PositiveInt
    bos_id: NonNegativeInt
    eos_id: NonNegativeInt
    pad_id: NonNegativeInt


class _Manifest(_Record):
    format: Literal["krill-tokens"]
    version: Literal[2]
    dtype: Literal["uint16", "uint32"]
    signature: str
    tokenizer: _TokenizerRecord
    sources: list[str]
    splits: _Splits


def write_shard(
    folder: Path,
    name: str,
    dtype: np.dtype[Any],
    tokens: Iterable[np.ndarray],
    lengths: np.ndarray,
    sources: np.ndarray,
) -> dict[str, Any]:
    """Writes and syncs the files of a shard; returns its record for the manifest.

    `tokens`: the documents' ids in chunks of any size. `lengths`, `sources`: values per document, (documents,).
    """
    columns: dict[str, Iterable[np.ndarray]] = {
        "tokens": tokens, "ends": [np.cumsum(lengths)], "sources": [sources]
    }  # fmt: skip
    hashes = {
        kind: _write_hashed(
            _get_shard_path(folder, name, kind), (np.asarray(chunk, kind_dtype) for chunk in columns[kind])
        )
        for kind, kind_dtype in _list_file_kinds(dtype)
    }
    return {"name": name, "documents": len(lengths), "tokens": int(lengths.sum()), "xxh3_128": hashes}


def _write_hashed(path: Path, chunks: Iterable[np.ndarray]) -> str:
    """Writes and syncs a file; returns the xxh3_128 of its content."""
    digest = xxhash.xxh3_128()
    with open(path, "wb") as file:
        for chunk in chunks:
            content = np.ascontiguousarray(chunk).view(np.uint8).data
            digest.update(content)
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def has_shard(folder: Path, dtype: np.dtype[Any], record: dict[str, Any]) -> bool:
    """Returns whether the files of a shard exist with the sizes of its record."""
    return all(
        path.is_file() and path.stat().st_size == size
        for path, size, _ in _list_shard_files(folder, dtype, record)
    )


def build_manifest(
    dtype: np.dtype[Any], sources: list[str], splits: dict[str, Any], **facts: Any
) -> dict[str, Any]:
    """Returns the manifest of a store; `facts` (JSON values) are added to it.

    `splits` has documents, tokens, text_bytes, by_source and shards of each split; facts["signature"] and
    facts["tokenizer"] are required. `_Manifest` has the types.
    """
    head = {"format": FORMAT, "version": VERSION, "dtype": dtype.name}
    return {**head, **facts, "sources": sources, "splits": splits}


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Writes the manifest, which completes the store; all other files must be on disk."""
    _fsync_folder(folder)
    write_checksummed_json(folder / "manifest.json", manifest)


class Store:
    """A token store opened for reading, with splits `train` and `validation`. Pickles as its folder."""

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

    @property
    def validation_set(self) -> str | None:
        """Identity of the held-out texts, by which losses are comparable; None if there are none."""
        if not self.validation.documents:
            return None
        if identity := self.manifest.get("validation_set"):
            return str(identity)
        # A store of an earlier version: its files identify the texts as well, but only for this tokenizer.
        shards = self.manifest["splits"]["validation"]["shards"]
        return compute_signature("validation", self.tokenizer_signature, shards)

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Opens a store; reads only the manifest and the file sizes.

        Raises UsageError if there is no store or its format is not supported, KrillError if the manifest has changed,
        a file is missing or its size differs. `verify` also checks the content of the files.
        """
        store = cls(folder, _read_manifest(folder))
        for path, size, _ in store._list_files():
            actual_size = path.stat().st_size if path.is_file() else None
            if actual_size != size:
                problem = "is missing" if actual_size is None else f"has {actual_size} bytes, expected {size}"
                raise KrillError(f"{path} {problem}. {_suggest_rebuild(folder)}")
        return store

    def get_split(self, name: str) -> Split:
        """Returns the split `name`: train or validation."""
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
        """Removes everything from the folder that is not part of the store: parts, files of interrupted writers."""
        names = {"manifest.json", "record.json", *(path.name for path, _, _ in self._list_files())}
        for path in self.folder.iterdir():
            if path.name in names:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def verify(self) -> None:
        """Hashes every file (about 1 GB/s from disk); raises KrillError naming the first that has changed."""
        for path, _, expected in self._list_files():
            if hash_file(path) != expected:
                raise KrillError(f"{path} has changed since it was written. {_suggest_rebuild(self.folder)}")

    def _list_files(self) -> list[tuple[Path, int, str]]:
        """Returns (path, size in bytes, hash) of every file in the manifest."""
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
        """Returns a memory map of one of the shard's files."""
        return np.memmap(_get_shard_path(self.folder, self.name, kind), dtype, mode="r")

    def copy(self, kind: str, dtype: np.dtype[Any], first: int, last: int) -> np.ndarray:
        """Reads the values [first, last) of one of the shard's files."""
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
    """Number of tokens, including bos and eos of each document."""
    text_bytes: int
    """UTF-8 bytes of all texts, after the tokenizer's Unicode normalization."""
    shards: tuple[_Shard, ...] = field(repr=False)

    @cached_property
    def ends(self) -> np.ndarray:
        """The end of each document in the split's stream; uint64 (documents,), strictly increasing."""
        arrays = [
            shard.memmap("ends", _END_DTYPE) + np.uint64(start)
            for shard, start in zip(self.shards, self._shard_starts, strict=True)
        ]
        return np.concatenate(arrays) if arrays else np.zeros(0, np.uint64)

    @cached_property
    def sources(self) -> np.ndarray:
        """The index of each document's source; uint16 (documents,)."""
        arrays = [shard.memmap("sources", _SOURCE_DTYPE) for shard in self.shards]
        return np.concatenate(arrays) if arrays else np.zeros(0, np.uint16)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns token ids [start, stop) of the stream, across shards; read-only, uint16 or uint32 (stop - start,).

        Raises IndexError outside [0, tokens].
        """
        arrays = [
            self._token_maps[shard][first:last] for shard, first, last in self._find_segments(start, stop)
        ]
        return _concatenate(arrays, self.dtype)

    def copy(self, start: int, stop: int) -> np.ndarray:
        """Reads as `read` does, but from the files instead of the memory maps: for a pass over the whole split.

        Accessed pages of a map count as memory of the process until the system reclaims them.
        """
        arrays = [
            self.shards[shard].copy("tokens", self.dtype, first, last)
            for shard, first, last in self._find_segments(start, stop)
        ]
        return _concatenate(arrays, self.dtype)

    def _find_segments(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """Returns (shard index, first, last) of the segments of [start, stop)."""
        if not 0 <= start <= stop <= self.tokens:
            raise IndexError(f"tokens [{start}, {stop}) of {self.name}, which has {self.tokens}")
        segments = []
        shard = bisect_right(self._shard_starts, start) - 1
        while start < stop:
            first = self._shard_starts[shard]
            last = min(stop, first + self.shards[shard].tokens)
            segments.append((shard, start - first, last - first))
            start, shard = last, shard + 1
        return segments

    @cached_property
    def _shard_starts(self) -> list[int]:
        """The start of each shard in the stream."""
        return [0, *np.cumsum([shard.tokens for shard in self.shards]).tolist()][: len(self.shards)]

    @cached_property
    def _token_maps(self) -> list[np.ndarray]:
        # Plain arrays over the maps: slicing a np.memmap is ten times slower.
        return [np.asarray(shard.memmap("tokens", self.dtype)) for shard in self.shards]

    def __getstate__(self) -> dict[str, Any]:
        return {key: self.__dict__[key] for key in self.__dataclass_fields__}


def _concatenate(arrays: list[np.ndarray], dtype: np.dtype[Any]) -> np.ndarray:
    """Concatenates arrays; a single one is not copied."""
    if len(arrays) == 1:
        return arrays[0]
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype)


def _list_file_kinds(dtype: np.dtype[Any]) -> tuple[tuple[str, np.dtype[Any]], ...]:
    """Returns (suffix, dtype) of a shard's three files."""
    return (("tokens", dtype), ("ends", _END_DTYPE), ("sources", _SOURCE_DTYPE))


def _list_shard_files(
    folder: Path, dtype: np.dtype[Any], shard: dict[str, Any]
) -> list[tuple[Path, int, str]]:
    """Returns (path, size in bytes, hash) of the files of a shard."""
    files = []
    for kind, kind_dtype in _list_file_kinds(dtype):
        items = shard["tokens"] if kind == "tokens" else shard["documents"]
        files.append(
            (
                _get_shard_path(folder, shard["name"], kind),
                items * kind_dtype.itemsize,
                shard["xxh3_128"][kind],
            )
        )
    return files


def _get_shard_path(folder: Path, shard: str, kind: str) -> Path:
    return folder / f"{shard}.{kind}"


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        raise UsageError(
            f"{folder} is not a token store (no manifest.json); create one with krill-preprocess"
        )
    try:
        manifest = read_checksummed_json(path)
    except ChecksumError as error:
        _require_supported_format(path)
        raise KrillError(f"{path} has changed since it was written. {_suggest_rebuild(folder)}") from error
    try:
        _Manifest.model_validate(manifest)
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"]))
        raise KrillError(
            f"{path}: {key}: {error.errors()[0]['msg'].lower()}. {_suggest_rebuild(folder)}"
        ) from error
    return manifest


def _require_supported_format(path: Path) -> None:
    """Raises UsageError for the manifest of another version of krill, KrillError if it is not a manifest at all."""
    try:
        manifest = json.loads(path.read_bytes())
        format_name, version = manifest["format"], manifest["version"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise KrillError(
            f"{path} is not a manifest of a token store. {_suggest_rebuild(path.parent)}"
        ) from error
    if (format_name, version) != (FORMAT, VERSION):
        raise UsageError(
            f"{path} has format {format_name} {version}, expected {FORMAT} {VERSION}. "
            f"{_suggest_rebuild(path.parent)}"
        )


def _suggest_rebuild(folder: Path) -> str:
    return f"Remove {folder} and run the same command again to prepare the tokens from scratch"


def _fsync_folder(folder: Path) -> None:
    """Syncs the folder's entries to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
