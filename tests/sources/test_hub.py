"""Data sets as the datasets library reads them: loaded and streamed give the same documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from reading import GOOD, TEXTS, hub, json_lines, parquet, places_and_texts, texts

from krill.config.schema import HubDatasetConfig
from krill.errors import KrillError, UsageError
from krill.sources.registry import open_source
from krill.sources.source import SkippedRecords


@pytest.fixture(autouse=True)
def _cached_datasets(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A data set of three files."""
    for name in "abc":
        lines = [{"text": f"{name}{index}", "id": index} for index in range(5)]
        json_lines(tmp_path / f"train-{name}.jsonl", *lines, {"text": None, "id": 5})
    return str(tmp_path)


def test_a_folder_is_a_data_set_with_slices(tmp_path: Path) -> None:
    json_lines(tmp_path / "train.jsonl", *GOOD, {"text": None})
    path, skipped = str(tmp_path), SkippedRecords()
    source = open_source(
        hub(HubDatasetConfig(path=path), HubDatasetConfig(path=path, split="train[:2]", weight=2))
    )
    assert texts(source, skipped) == TEXTS + TEXTS[:2]
    assert skipped.reasons == {"'text' is null": {"records": 1, "places": [f"{path}:train: row 4"]}}
    assert source.weights == [1, 2]


@pytest.mark.parametrize("goal", [1, 20, 10**9])
def test_parts_of_rows_and_of_files_are_the_whole(
    folder: str, monkeypatch: pytest.MonkeyPatch, goal: int
) -> None:
    monkeypatch.setattr("krill.sources.hub.part_bytes", lambda total: goal)
    loaded, streamed = (
        open_source(hub(HubDatasetConfig(path=folder, streaming=streaming))) for streaming in (False, True)
    )
    assert len(loaded.list_parts()) == {1: 18, 20: 6, 10**9: 1}[goal]
    assert len(streamed.list_parts()) == 3
    first, second = places_and_texts(loaded), places_and_texts(streamed)
    assert [text for _, text in first] == [f"{name}{index}" for name in "abc" for index in range(5)]
    assert [text for _, text in second] == [text for _, text in first]
    assert first[5] == (f"{folder}:train: row 7", "b0")
    assert second[5] == (f"{folder}:train: shard 1, row 1", "b0")
    assert loaded.compute_fingerprint() == streamed.compute_fingerprint()


@pytest.mark.parametrize("streaming", [False, True])
def test_a_limit_is_one_part(folder: str, monkeypatch: pytest.MonkeyPatch, streaming: bool) -> None:
    monkeypatch.setattr("krill.sources.hub.part_bytes", lambda total: 1)
    source = open_source(hub(HubDatasetConfig(path=folder, streaming=streaming, limit=7)))
    assert texts(source) == ["a0", "a1", "a2", "a3", "a4", "b0", "b1"]
    assert len(source.list_parts()) == 1


def test_a_slice_is_loaded_though_streaming_was_asked_for(
    folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = open_source(hub(HubDatasetConfig(path=folder, split="train[1:3]", streaming=True)))
    assert texts(source) == ["a1", "a2"]
    assert "a slice is loaded, not streamed" in caplog.text


def test_what_cannot_be_streamed_is_taken_from_the_cache(
    folder: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import datasets

    load = datasets.load_dataset

    def offline(*words: Any, streaming: bool = False, **settings: Any) -> Any:
        if streaming:
            raise ConnectionError("no route to host")
        return load(*words, **settings)

    monkeypatch.setattr(datasets, "load_dataset", offline)
    assert len(texts(open_source(hub(HubDatasetConfig(path=folder, streaming=True))))) == 15
    assert "cannot be streamed (no route to host)" in caplog.text


def test_parquet_with_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: one\n  data_files: one.parquet\n"
        "- config_name: two\n  data_files: two.parquet\n---\n"
    )
    for name in ("one", "two"):
        parquet(tmp_path / f"{name}.parquet", body=[f"{name} {row}" for row in range(9)], id=range(9), rows=2)
    for streaming in (False, True):
        settings = {"path": str(tmp_path), "text_column": "body", "streaming": streaming}
        source = open_source(hub(*(HubDatasetConfig(config=name, **settings) for name in ("two", "one"))))
        assert texts(source) == [f"{name} {row}" for name in ("two", "one") for row in range(9)]
        assert source.names == [f"{tmp_path}:{name}:train" for name in ("two", "one")]


def test_fingerprint_is_what_is_read(folder: str) -> None:
    before = open_source(hub(HubDatasetConfig(path=folder))).compute_fingerprint()
    json.dumps(before)
    for change in ({"limit": 2}, {"weight": 2}, {"text_column": "id"}, {"config": "x"}, {"split": "test"}):
        assert open_source(hub(HubDatasetConfig(path=folder, **change))).compute_fingerprint() != before
    json_lines(Path(folder) / "train-a.jsonl", *GOOD)
    assert open_source(hub(HubDatasetConfig(path=folder))).compute_fingerprint() != before


def test_a_data_set_of_the_hub_is_known_by_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    commits = iter(["c1", "c2"])
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *_, **__: f"/cache/snapshots/{next(commits)}"
    )
    before, after = (
        open_source(hub(HubDatasetConfig(path=path))).compute_fingerprint() for path in ("user/a", "user/b")
    )
    assert before[0]["revision"] == "c1"
    assert after[0]["revision"] == "c2"


def test_a_data_set_that_cannot_be_had_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(KrillError, match=r"user/c:train: cannot.*no route to host.*data=files"):
        texts(open_source(hub(HubDatasetConfig(path="user/c"))))


def test_a_data_set_without_the_column_or_split(tmp_path: Path) -> None:
    json_lines(tmp_path / "train.jsonl", {"body": "x"})
    with pytest.raises(UsageError, match="no column 'text'; it has body"):
        texts(open_source(hub(HubDatasetConfig(path=str(tmp_path)))))
    with pytest.raises(UsageError, match=":test: "):
        texts(open_source(hub(HubDatasetConfig(path=str(tmp_path), split="test"))))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_column_that_is_no_text(folder: str, streaming: bool) -> None:
    with pytest.raises(UsageError, match="column id holds int64, not text"):
        texts(open_source(hub(HubDatasetConfig(path=folder, text_column="id", streaming=streaming))))
