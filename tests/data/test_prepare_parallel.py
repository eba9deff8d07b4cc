"""The store is the same to the byte, whoever made which part of it, in which order, however often killed."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_prepare import content, files, json_lines, prepared, save_bytes

from krill.config.schema import FilesDataConfig
from krill.data import encoding
from krill.data.engines import HuggingFaceEngine
from krill.data.prepare import assign_parts_to_tasks, prepare_store, prepare_task_parts
from krill.data.store import Store
from krill.errors import KrillError, UsageError
from krill.sources import files as file_sources
from krill.sources.source import Part
from krill.tokenizer.artifact import TokenizerFolder

WORDS = [
    "가을",
    "하늘",
    "바다",
    "the",
    "of",
    "and",
    "model",
    "token",
    "data",
    "안녕",
    "train",
    "step",
    "loss",
    "모델",
]


@pytest.fixture
def tokenizer(tmp_path: Path) -> TokenizerFolder:
    return save_bytes(tmp_path / "bytes")


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_sources, "compute_part_bytes", lambda total: 4000)


def write_corpus(folder: Path) -> list[Path]:
    """Three files of about twelve parts; duplicates within a part, across parts and across files, and bad lines."""
    random_ = random.Random(0)
    texts = [" ".join(random_.choices(WORDS, k=random_.randrange(1, 60))) for _ in range(300)]
    texts += random_.choices(texts, k=60) + [f"{text} again" for text in texts[:30]]
    random_.shuffle(texts)
    paths = [json_lines(folder / f"{name}.jsonl", texts[at::3]) for at, name in enumerate("abc")]
    with open(paths[1], "a") as file:
        file.write('{"text": 5}\n{cut\n')
    return paths


RULES: dict[str, Any] = {"min_chars": 10, "min_tokens": 20, "max_tokens": 250, "validation_fraction": 0.1}
NEAR = {"threshold": 0.8, "unit": "word", "size": 3, "bands": 16, "rows": 8}


@pytest.mark.parametrize("rules", [RULES, RULES | {"minhash": NEAR}], ids=["exact", "near"])
def test_workers_and_engines_give_the_same_bytes(
    tmp_path: Path, tokenizer: TokenizerFolder, rules: dict[str, Any]
) -> None:
    paths = write_corpus(tmp_path)
    alone = prepared(tmp_path / "one", files(*paths, **rules), tokenizer, shard_tokens=5000)
    manifest = alone.manifest
    assert {"min_chars", "min_tokens", "max_tokens", "duplicate"} <= set(manifest["dropped"])
    assert ("near duplicate" in manifest["dropped"]) == ("minhash" in rules)
    assert len(alone.train.shards) > 3
    for name, changes in (("two", {"workers": 2}), ("fast", {"workers": 2, "engine": "fast"})):
        store = prepared(tmp_path / name, files(*paths, **rules, **changes), tokenizer, shard_tokens=5000)
        assert content(store.folder) == content(alone.folder)


def test_tokens_read_are_stored_or_counted(tmp_path: Path, tokenizer: TokenizerFolder) -> None:
    paths = write_corpus(tmp_path)
    manifest = prepared(tmp_path / "store", files(*paths, **RULES, minhash=NEAR), tokenizer).manifest
    records = sum(len(path.read_text().splitlines()) for path in paths)
    skipped = sum(found["records"] for found in manifest["skipped"].values())
    dropped = manifest["dropped"].values()
    stored = manifest["splits"].values()
    assert manifest["read"]["documents"] + skipped == records
    assert manifest["read"]["documents"] == sum(each["documents"] for each in (*dropped, *stored))
    assert manifest["read"]["tokens"] == sum(each["tokens"] for each in (*dropped, *stored))


def test_shards_are_merged_to_the_store_of_one_process(tmp_path: Path, tokenizer: TokenizerFolder) -> None:
    paths = write_corpus(tmp_path)
    alone = prepared(tmp_path / "one", files(*paths, **RULES, minhash=NEAR), tokenizer)
    folder = tmp_path / "shards"

    def shard(number: int | None) -> FilesDataConfig:
        return files(*paths, **RULES, minhash=NEAR, num_tasks=4, task=number)

    for number in (2, 0):
        prepare_task_parts(shard(number), tokenizer, folder)
    with pytest.raises(
        KrillError, match=r"not prepared yet: shard 1, 3\. .*data\.num_tasks=4 data\.task=1,3"
    ):
        prepare_store(shard(None), tokenizer, folder)
    for number in (3, 1):
        prepare_task_parts(shard(number), tokenizer, folder)
    prepare_store(shard(None), tokenizer, folder)
    assert content(folder) == content(alone.folder)
    assert not (folder / "parts").exists()


@given(st.lists(st.integers(0, 1000), max_size=30), st.integers(1, 40))
def test_every_part_is_in_one_shard(sizes: list[int], shards: int) -> None:
    found = assign_parts_to_tasks([Part(0, None, size) for size in sizes], shards)
    assert len(found) == shards
    assert [index for mine in found for index in mine] == list(range(len(sizes)))


def test_parts_of_another_text_are_not_taken(tmp_path: Path, tokenizer: TokenizerFolder) -> None:
    (first, *_), folder = write_corpus(tmp_path), tmp_path / "store"
    data = files(first, **RULES, num_tasks=2, task=0)
    prepare_task_parts(data, tokenizer, folder)
    json_lines(first, ["another text, as long as it has to be " * 3])
    whole = files(first, **RULES)
    prepare_store(whole, tokenizer, folder)
    assert content(folder) == content(prepared(tmp_path / "fresh", whole, tokenizer).folder)


SCRIPT = """
import json, sys
from pathlib import Path
from krill.config.schema import Files
from krill.data import parts
from krill.sources import files
from krill.data.prepare import prepare
from krill.tokenizer.folder import load_tokenizer

files.part_bytes = lambda total: 4000
if __name__ == "__main__":
    data, tokenizer, folder = sys.argv[1:]
    prepare(Files(**json.loads(data)), load_tokenizer(Path(tokenizer)), Path(folder), shard_tokens=5000)
"""


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(
    tmp_path: Path, tokenizer: TokenizerFolder
) -> None:
    data = files(*write_corpus(tmp_path), **RULES, minhash=NEAR, workers=2)
    expected = content(prepared(tmp_path / "one", data, tokenizer, shard_tokens=5000).folder)
    script, folder = tmp_path / "script.py", tmp_path / "killed"
    folder.mkdir()
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), data.model_dump_json(), str(tokenizer.folder), str(folder)]

    def finished() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (folder / "parts").glob("*.npz")}

    moments: list[Callable[[], bool]] = [
        lambda: len(finished()) >= 1,
        lambda: len(finished()) >= 6,
        lambda: len(list((folder / "parts").glob("train-*.json"))) >= 2,
    ]
    for moment in moments:
        before = finished()
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while process.poll() is None and not moment():
            time.sleep(0.001)
        process.kill()
        process.wait()
        assert finished().items() >= before.items()  # what was done is not done again
    assert finished() or (folder / "manifest.json").exists()
    subprocess.run(command, check=True)
    assert content(folder) == expected
    Store.open(folder).verify()


def test_a_part_that_is_damaged_is_made_again(tmp_path: Path, tokenizer: TokenizerFolder) -> None:
    paths = write_corpus(tmp_path)
    expected = content(prepared(tmp_path / "one", files(*paths, **RULES), tokenizer).folder)
    folder = tmp_path / "store"
    for number in range(2):
        prepare_task_parts(files(*paths, **RULES, num_tasks=2, task=number), tokenizer, folder)
    made = sorted((folder / "parts").glob("*.npz"))
    made[0].write_bytes(made[0].read_bytes()[:50])
    made[1].with_suffix(".tokens").write_bytes(b"\0")
    made[2].write_bytes(b"")
    prepare_store(files(*paths, **RULES), tokenizer, folder)
    assert content(folder) == expected


def test_weights_repeat_and_thin_training_documents(tmp_path: Path, tokenizer: TokenizerFolder) -> None:
    texts = [f"document number {index} of its source" for index in range(400)]
    twice = json_lines(tmp_path / "twice.jsonl", texts[:100])
    half = json_lines(tmp_path / "half.jsonl", texts[100:])
    data = files(
        validation_fraction=0.1, paths=[{"path": str(twice), "weight": 2}, {"path": str(half), "weight": 0.5}]
    )
    store = prepared(tmp_path / "store", data, tokenizer)
    found, validation = store.manifest["splits"]["train"], store.manifest["splits"]["validation"]
    by_source = {name: counts["documents"] for name, counts in found["by_source"].items()}
    held = {name: counts["documents"] for name, counts in validation["by_source"].items()}
    assert by_source["twice.jsonl"] == 2 * (100 - held["twice.jsonl"])
    assert 0.35 < by_source["half.jsonl"] / (300 - held["half.jsonl"]) < 0.65
    assert (
        store.manifest["dropped"]["weight"]["documents"] == 300 - held["half.jsonl"] - by_source["half.jsonl"]
    )
    assert store.manifest["repeated"]["documents"] == 100 - held["twice.jsonl"]
    assert json.loads((store.folder / "record.json").read_text())["peak_memory_bytes"] > 10**7


class FaultyEngine:
    """A fast engine that is wrong where the sample did not look."""

    def __init__(self, backend: Any) -> None:
        self._correct_engine = HuggingFaceEngine(backend)

    def encode_batch(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        ids, lengths = self._correct_engine.encode_batch(texts)
        return ids ^ np.uint32(1), lengths


def test_an_engine_that_errs_later_is_not_used(
    tmp_path: Path,
    tokenizer: TokenizerFolder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    paths = write_corpus(tmp_path)
    expected = content(prepared(tmp_path / "hf", files(*paths, **RULES), tokenizer).folder)
    monkeypatch.setattr(encoding, "GigatokenEngine", FaultyEngine)
    store = prepared(tmp_path / "auto", files(*paths, **RULES, engine="auto"), tokenizer)
    assert content(store.folder) == expected
    assert "all is encoded again by Hugging Face tokenizers" in caplog.text
    with pytest.raises(UsageError, match=r"gigatoken gives other ids .*data\.engine=hf"):
        prepared(tmp_path / "fast", files(*paths, **RULES, engine="fast"), tokenizer)
