"""Tests that a store is byte-identical for any number of workers and tasks, any engine and any interruption."""

from __future__ import annotations

import json
import os
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
from preloaded_workers import get_preloaded_context
from source_files import write_texts
from stores import make_byte_tokenizer, make_data_config, prepare_and_open, read_store_content

from krill.config.schema import FilesDataConfig
from krill.data import encoding, worker_pool
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
    return make_byte_tokenizer(tmp_path / "bytes")


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_sources, "compute_part_bytes", lambda total: 4000)


@pytest.fixture(autouse=True)
def _preloaded_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "get_context", get_preloaded_context)


def write_corpus(folder: Path) -> list[Path]:
    """Writes three files of about twelve parts, with duplicates within and across parts and invalid lines."""
    generator = random.Random(0)
    texts = [" ".join(generator.choices(WORDS, k=generator.randrange(1, 60))) for _ in range(300)]
    texts += generator.choices(texts, k=60) + [f"{text} again" for text in texts[:30]]
    generator.shuffle(texts)
    paths = [write_texts(folder / f"{name}.jsonl", texts[start::3]) for start, name in enumerate("abc")]
    with open(paths[1], "a") as file:
        file.write('{"text": 5}\n{cut\n')
    return paths


RULES: dict[str, Any] = {"min_chars": 10, "min_tokens": 20, "max_tokens": 250, "validation_fraction": 0.1}
MINHASH = {"threshold": 0.8, "unit": "word", "size": 3, "bands": 16, "rows": 8}


@pytest.mark.parametrize("rules", [RULES, RULES | {"minhash": MINHASH}], ids=["exact", "near"])
def test_workers_and_engines_give_the_same_bytes(
    tmp_path: Path, tokenizer: TokenizerFolder, rules: dict[str, Any]
) -> None:
    paths = write_corpus(tmp_path)
    single = prepare_and_open(
        tmp_path / "one", make_data_config(*paths, **rules), tokenizer, shard_tokens=5000
    )
    manifest = single.manifest
    assert {"min_chars", "min_tokens", "max_tokens", "duplicate"} <= set(manifest["dropped"])
    assert ("near duplicate" in manifest["dropped"]) == ("minhash" in rules)
    assert len(single.train.shards) > 3
    for name, changes in (("two", {"workers": 2}), ("fast", {"workers": 2, "engine": "fast"})):
        store = prepare_and_open(
            tmp_path / name, make_data_config(*paths, **rules, **changes), tokenizer, shard_tokens=5000
        )
        assert read_store_content(store.folder) == read_store_content(single.folder)


def test_tokens_read_are_stored_or_counted(tmp_path: Path, tokenizer: TokenizerFolder) -> None:
    paths = write_corpus(tmp_path)
    manifest = prepare_and_open(
        tmp_path / "store", make_data_config(*paths, **RULES, minhash=MINHASH), tokenizer
    ).manifest
    records = sum(len(path.read_text().splitlines()) for path in paths)
    skipped = sum(counts["records"] for counts in manifest["skipped"].values())
    dropped = manifest["dropped"].values()
    stored = manifest["splits"].values()
    assert manifest["read"]["documents"] + skipped == records
    assert manifest["read"]["documents"] == sum(counts["documents"] for counts in (*dropped, *stored))
    assert manifest["read"]["tokens"] == sum(counts["tokens"] for counts in (*dropped, *stored))


def test_tasks_are_merged_to_the_store_of_one_process(tmp_path: Path, tokenizer: TokenizerFolder) -> None:
    paths = write_corpus(tmp_path)
    single = prepare_and_open(tmp_path / "one", make_data_config(*paths, **RULES, minhash=MINHASH), tokenizer)
    folder = tmp_path / "tasks"

    def make_task_config(task: int | None) -> FilesDataConfig:
        return make_data_config(*paths, **RULES, minhash=MINHASH, num_tasks=4, task=task)

    for task in (2, 0):
        prepare_task_parts(make_task_config(task), tokenizer, folder)
    with pytest.raises(KrillError, match=r"not prepared yet: task 1, 3\. .*data\.num_tasks=4 data\.task=1,3"):
        prepare_store(make_task_config(None), tokenizer, folder)
    for task in (3, 1):
        prepare_task_parts(make_task_config(task), tokenizer, folder)
    prepare_store(make_task_config(None), tokenizer, folder)
    assert read_store_content(folder) == read_store_content(single.folder)
    assert not (folder / "parts").exists()


@given(st.lists(st.integers(0, 1000), max_size=30), st.integers(1, 40))
def test_every_part_is_assigned_to_one_task(sizes: list[int], num_tasks: int) -> None:
    tasks = assign_parts_to_tasks([Part(0, None, size) for size in sizes], num_tasks)
    assert len(tasks) == num_tasks
    assert [index for assigned in tasks for index in assigned] == list(range(len(sizes)))


def test_parts_of_another_text_are_not_reused(tmp_path: Path, tokenizer: TokenizerFolder) -> None:
    (first, *_), folder = write_corpus(tmp_path), tmp_path / "store"
    data = make_data_config(first, **RULES, num_tasks=2, task=0)
    prepare_task_parts(data, tokenizer, folder)
    write_texts(first, ["another text, as long as it has to be " * 3])
    data = make_data_config(first, **RULES)
    prepare_store(data, tokenizer, folder)
    assert read_store_content(folder) == read_store_content(
        prepare_and_open(tmp_path / "fresh", data, tokenizer).folder
    )


TESTS = Path(__file__).parents[1]
SCRIPT = """
import json, sys
from pathlib import Path
from krill.config.schema import FilesDataConfig
from krill.data import worker_pool
from krill.data.prepare import prepare_store
from krill.sources import files
from krill.tokenizer.artifact import load_tokenizer
from preloaded_workers import get_preloaded_context

assert callable(files.compute_part_bytes) and callable(worker_pool.get_context)
files.compute_part_bytes = lambda total: 4000
worker_pool.get_context = get_preloaded_context
if __name__ == "__main__":
    data, tokenizer, folder = sys.argv[1:]
    data = FilesDataConfig(**json.loads(data))
    prepare_store(data, load_tokenizer(Path(tokenizer)), Path(folder), shard_tokens=5000)
"""


@pytest.mark.slow
def test_killed_preparation_resumes_to_the_same_bytes(tmp_path: Path, tokenizer: TokenizerFolder) -> None:
    data = make_data_config(*write_corpus(tmp_path), **RULES, minhash=MINHASH, workers=2)
    expected = read_store_content(
        prepare_and_open(tmp_path / "one", data, tokenizer, shard_tokens=5000).folder
    )
    script, folder = tmp_path / "script.py", tmp_path / "killed"
    folder.mkdir()
    script.write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(TESTS)}
    command = [sys.executable, str(script), data.model_dump_json(), str(tokenizer.folder), str(folder)]

    def list_finished_parts() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (folder / "parts").glob("*.npz")}

    moments: list[Callable[[], bool]] = [
        lambda: len(list_finished_parts()) >= 1,
        lambda: len(list_finished_parts()) >= 6,
        lambda: len(list((folder / "parts").glob("train-*.json"))) >= 2,
    ]
    for moment in moments:
        before = list_finished_parts()
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment)
        while process.poll() is None and not moment():
            time.sleep(0.001)
        process.kill()
        process.wait()
        assert list_finished_parts().items() >= before.items()  # finished parts are not written again
    assert list_finished_parts() or (folder / "manifest.json").exists()
    subprocess.run(command, check=True, env=environment)
    assert read_store_content(folder) == expected
    Store.open(folder).verify()


def test_damaged_part_is_written_again(tmp_path: Path, tokenizer: TokenizerFolder) -> None:
    paths = write_corpus(tmp_path)
    expected = read_store_content(
        prepare_and_open(tmp_path / "one", make_data_config(*paths, **RULES), tokenizer).folder
    )
    folder = tmp_path / "store"
    for task in range(2):
        prepare_task_parts(make_data_config(*paths, **RULES, num_tasks=2, task=task), tokenizer, folder)
    part_files = sorted((folder / "parts").glob("*.npz"))
    part_files[0].write_bytes(part_files[0].read_bytes()[:50])
    part_files[1].with_suffix(".tokens").write_bytes(b"\0")
    part_files[2].write_bytes(b"")
    prepare_store(make_data_config(*paths, **RULES), tokenizer, folder)
    assert read_store_content(folder) == expected


def test_weights_repeat_and_subsample_training_documents(tmp_path: Path, tokenizer: TokenizerFolder) -> None:
    texts = [f"document number {index} of its source" for index in range(400)]
    twice = write_texts(tmp_path / "twice.jsonl", texts[:100])
    half = write_texts(tmp_path / "half.jsonl", texts[100:])
    data = make_data_config(
        validation_fraction=0.1, paths=[{"path": str(twice), "weight": 2}, {"path": str(half), "weight": 0.5}]
    )
    store = prepare_and_open(tmp_path / "store", data, tokenizer)
    train, validation = store.manifest["splits"]["train"], store.manifest["splits"]["validation"]
    by_source = {name: counts["documents"] for name, counts in train["by_source"].items()}
    num_validation = {name: counts["documents"] for name, counts in validation["by_source"].items()}
    assert by_source["twice.jsonl"] == 2 * (100 - num_validation["twice.jsonl"])
    assert 0.35 < by_source["half.jsonl"] / (300 - num_validation["half.jsonl"]) < 0.65
    assert (
        store.manifest["dropped"]["weight"]["documents"]
        == 300 - num_validation["half.jsonl"] - by_source["half.jsonl"]
    )
    assert store.manifest["repeated"]["documents"] == 100 - num_validation["twice.jsonl"]
    assert json.loads((store.folder / "record.json").read_text())["peak_memory_bytes"] > 10**7


class FaultyEngine:
    """A fast engine that gives other ids from the second batch on, where the sample does not detect it."""

    def __init__(self, backend: Any) -> None:
        self._correct_engine = HuggingFaceEngine(backend)
        self._num_calls = 0

    def encode_batch(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        self._num_calls += 1
        ids, lengths = self._correct_engine.encode_batch(texts)
        return ids if self._num_calls <= 2 else ids ^ np.uint32(1), lengths


def test_engine_that_differs_after_the_sample_is_not_used(
    tmp_path: Path,
    tokenizer: TokenizerFolder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    paths = write_corpus(tmp_path)
    expected = read_store_content(
        prepare_and_open(tmp_path / "hf", make_data_config(*paths, **RULES), tokenizer).folder
    )
    monkeypatch.setattr(encoding, "GigatokenEngine", FaultyEngine)
    store = prepare_and_open(tmp_path / "auto", make_data_config(*paths, **RULES, engine="auto"), tokenizer)
    assert read_store_content(store.folder) == expected
    assert "encoding everything again with Hugging Face tokenizers" in caplog.text
    records = [json.loads((tmp_path / name / "record.json").read_text()) for name in ("hf", "auto")]
    assert records[1]["documents"] == records[0]["documents"]  # not those of the other engine, too
    with pytest.raises(UsageError, match=r"gigatoken gives different ids .*data\.engine=hf"):
        prepare_and_open(tmp_path / "fast", make_data_config(*paths, **RULES, engine="fast"), tokenizer)
