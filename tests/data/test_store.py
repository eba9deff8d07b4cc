"""Tests of the token store: reading across shards, and errors that name the changed file."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from krill.checksum import read_checksummed_json
from krill.data.store import Store, build_manifest, write_manifest, write_shard
from krill.errors import KrillError, UsageError

TOKENIZER = {"signature": "t", "vocab_size": 1000, "bos_id": 0, "eos_id": 1, "pad_id": 2}
LENGTHS = [5, 3, 40, 2, 8, 8, 1, 9]


def make_documents(dtype: str) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, np.iinfo(dtype).max, length, dtype=dtype) for length in LENGTHS]


def write_test_store(folder: Path, dtype: str = "uint16", shards: tuple[int, ...] = (2, 1, 2, 2, 1)) -> Store:
    """Writes a store with these numbers of documents per shard, from two alternating sources."""
    folder.mkdir(exist_ok=True)
    records, first = [], 0
    for number, count in enumerate(shards):
        tokens = make_documents(dtype)[first : first + count]
        sources = np.arange(first, first + count) % 2
        lengths = np.array([len(document) for document in tokens])
        records.append(write_shard(folder, f"train-{number:05d}", np.dtype(dtype), tokens, lengths, sources))
        first += count
    counts = {"documents": first, "tokens": sum(LENGTHS[:first]), "text_bytes": 10 * first, "by_source": {}}
    empty = {"documents": 0, "tokens": 0, "text_bytes": 0, "by_source": {}}
    splits = {"train": {**counts, "shards": records}, "validation": {**empty, "shards": []}}
    facts: dict[str, Any] = {"signature": "s", "tokenizer": TOKENIZER}
    write_manifest(folder, build_manifest(np.dtype(dtype), ["하나", "two"], splits, **facts))
    return Store.open(folder)


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_every_slice_is_read_back_across_shards(tmp_path: Path, dtype: str) -> None:
    store = write_test_store(tmp_path / "store", dtype)
    expected = np.concatenate(make_documents(dtype))
    train = store.train
    assert [shard.tokens for shard in train.shards] == [8, 40, 10, 9, 9]
    assert train.tokens == len(expected) == sum(LENGTHS)
    for start in range(train.tokens + 1):
        for stop in range(start, train.tokens + 1):
            tokens = train.read(start, stop)
            assert tokens.dtype == np.dtype(dtype)
            assert np.array_equal(tokens, expected[start:stop])
            assert np.array_equal(train.copy(start, stop), tokens)
    np.testing.assert_array_equal(train.ends, np.cumsum(LENGTHS))
    assert train.ends.dtype == np.uint64
    assert train.sources.tolist() == [0, 1] * 4
    store.verify()


def test_a_split_without_documents(tmp_path: Path) -> None:
    validation = write_test_store(tmp_path / "store").validation
    assert (validation.documents, validation.tokens, len(validation.ends)) == (0, 0, 0)
    assert len(validation.sources) == len(validation.read(0, 0)) == 0


def test_reading_outside_raises(tmp_path: Path) -> None:
    train = write_test_store(tmp_path / "store").train
    for start, stop in ((-1, 2), (0, 77), (5, 4)):
        with pytest.raises(IndexError, match="has 76"):
            train.read(start, stop)


def test_pickles_without_its_tokens(tmp_path: Path) -> None:
    store = write_test_store(tmp_path / "store", shards=(8,))
    expected = store.train.read(0, 76).tolist()
    assert store.train.ends.size
    for copy in (pickle.loads(pickle.dumps(store)).train, pickle.loads(pickle.dumps(store.train))):
        assert copy.read(0, 76).tolist() == expected
        assert "_token_maps" not in pickle.loads(pickle.dumps(copy)).__dict__


def test_tokens_are_read_only(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="read-only"):
        write_test_store(tmp_path / "store").train.read(0, 3)[0] = 1


def test_the_same_documents_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = write_test_store(tmp_path / "a").folder, write_test_store(tmp_path / "b").folder
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def truncate(folder: Path) -> None:
    path = folder / "train-00001.tokens"
    path.write_bytes(path.read_bytes()[:-2])


def remove(folder: Path) -> None:
    (folder / "train-00001.ends").unlink()


def corrupt(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")


def change_format(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 1}))


def change_bytes(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"text_bytes": 80', '"text_bytes": 90', 1))


def lose_a_key(folder: Path) -> None:
    manifest = read_checksummed_json(folder / "manifest.json")
    del manifest["splits"]["train"]["text_bytes"]
    write_manifest(folder, manifest)


def change_a_type(folder: Path) -> None:
    manifest = read_checksummed_json(folder / "manifest.json")
    manifest["tokenizer"]["bos_id"] = "0"
    write_manifest(folder, manifest)


def write_foreign_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[]")


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (truncate, KrillError, r"train-00001\.tokens has 78 bytes, expected 80\. Remove"),
        (remove, KrillError, r"train-00001\.ends is missing\. Remove"),
        (corrupt, KrillError, r"manifest\.json is not a manifest"),
        (write_foreign_manifest, KrillError, r"manifest\.json is not a manifest"),
        (change_format, UsageError, r"has format krill-tokens 1, expected krill-tokens 2\. Remove"),
        (change_bytes, KrillError, r"manifest\.json has changed since it was written\. Remove"),
        (lose_a_key, KrillError, r"manifest\.json: splits\.train\.text_bytes: field required\. Remove"),
        (
            change_a_type,
            KrillError,
            r"manifest\.json: tokenizer\.bos_id: input should be a valid integer\. Remove",
        ),
    ],
)
def test_opening_a_damaged_store_raises(
    tmp_path: Path, damage: Callable[[Path], None], error: type[Exception], message: str
) -> None:
    folder = write_test_store(tmp_path / "store").folder
    damage(folder)
    with pytest.raises(error, match=message):
        Store.open(folder)


def test_folder_without_a_store_raises(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="krill-preprocess"):
        Store.open(tmp_path)


def test_verify_names_the_file_that_changed(tmp_path: Path) -> None:
    store = write_test_store(tmp_path / "store")
    path = store.folder / "train-00002.tokens"
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)
    with pytest.raises(KrillError, match=r"train-00002\.tokens has changed"):
        Store.open(store.folder).verify()
