"""Tests of the Hub source: loaded and streamed datasets give the same documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from source_files import (
    RECORDS,
    TEXTS,
    make_hub,
    read_locations_and_texts,
    read_texts,
    write_json_lines,
    write_parquet,
    write_texts,
)

from krill.config.schema import HubDatasetConfig
from krill.errors import KrillError, UsageError
from krill.sources import hub
from krill.sources.registry import open_source
from krill.sources.source import SkippedRecords


@pytest.fixture(autouse=True)
def _cached_datasets(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Returns the folder of a dataset of three files."""
    for name in "abc":
        lines = [{"text": f"{name}{index}", "id": index} for index in range(5)]
        write_json_lines(tmp_path / f"train-{name}.jsonl", *lines, {"text": None, "id": 5})
    return str(tmp_path)


def test_reads_a_folder_as_data_set_and_slices_of_it(tmp_path: Path) -> None:
    write_json_lines(tmp_path / "train.jsonl", *RECORDS, {"text": None})
    path, skipped = str(tmp_path), SkippedRecords()
    source = open_source(
        make_hub(HubDatasetConfig(path=path), HubDatasetConfig(path=path, split="train[:2]", weight=2))
    )
    assert read_texts(source, skipped) == TEXTS + TEXTS[:2]
    assert skipped.reasons == {"'text' is null": {"records": 1, "places": [f"{path}:train: row 4"]}}
    assert source.weights == [1, 2]


@pytest.mark.parametrize("part_bytes", [1, 20, 10**9])
def test_loaded_and_streamed_parts_contain_every_document_once(
    folder: str, monkeypatch: pytest.MonkeyPatch, part_bytes: int
) -> None:
    monkeypatch.setattr("krill.sources.hub.compute_part_bytes", lambda total: part_bytes)
    loaded, streamed = (
        open_source(make_hub(HubDatasetConfig(path=folder, streaming=streaming)))
        for streaming in (False, True)
    )
    assert len(loaded.list_parts()) == {1: 18, 20: 6, 10**9: 1}[part_bytes]
    assert len(streamed.list_parts()) == 3
    first, second = read_locations_and_texts(loaded), read_locations_and_texts(streamed)
    assert [text for _, text in first] == [f"{name}{index}" for name in "abc" for index in range(5)]
    assert [text for _, text in second] == [text for _, text in first]
    assert first[5] == (f"{folder}:train: row 7", "b0")
    assert second[5] == (f"{folder}:train: file 1, row 1", "b0")
    assert loaded.compute_fingerprint() == streamed.compute_fingerprint()


@pytest.mark.parametrize("streaming", [False, True])
def test_data_set_with_a_limit_has_one_part(
    folder: str, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    monkeypatch.setattr("krill.sources.hub.compute_part_bytes", lambda total: 1)
    source = open_source(make_hub(HubDatasetConfig(path=folder, streaming=streaming, limit=7)))
    assert read_texts(source) == ["a0", "a1", "a2", "a3", "a4", "b0", "b1"]
    assert len(source.list_parts()) == 1


def test_slice_is_loaded_despite_streaming(folder: str, caplog: pytest.LogCaptureFixture) -> None:
    source = open_source(make_hub(HubDatasetConfig(path=folder, split="train[1:3]", streaming=True)))
    assert read_texts(source) == ["a1", "a2"]
    assert "a slice is loaded, not streamed" in caplog.text


def test_falls_back_to_the_cache_if_streaming_fails(
    folder: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import datasets

    load = datasets.load_dataset

    def load_offline(*args: Any, streaming: bool = False, **kwargs: Any) -> Any:
        if streaming:
            raise ConnectionError("no route to host")
        return load(*args, **kwargs)

    monkeypatch.setattr(datasets, "load_dataset", load_offline)
    assert len(read_texts(open_source(make_hub(HubDatasetConfig(path=folder, streaming=True))))) == 15
    assert "cannot be streamed (no route to host)" in caplog.text


def test_reads_configurations_of_parquet_files(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: one\n  data_files: one.parquet\n"
        "- config_name: two\n  data_files: two.parquet\n---\n"
    )
    for name in ("one", "two"):
        write_parquet(
            tmp_path / f"{name}.parquet", body=[f"{name} {row}" for row in range(9)], id=range(9), rows=2
        )
    for streaming in (False, True):
        settings = {"path": str(tmp_path), "text_column": "body", "streaming": streaming}
        source = open_source(
            make_hub(*(HubDatasetConfig(config=name, **settings) for name in ("two", "one")))
        )
        assert read_texts(source) == [f"{name} {row}" for name in ("two", "one") for row in range(9)]
        assert source.names == [f"{tmp_path}:{name}:train" for name in ("two", "one")]


def test_fingerprint_depends_on_content_and_settings(folder: str) -> None:
    before = open_source(make_hub(HubDatasetConfig(path=folder))).compute_fingerprint()
    json.dumps(before)
    for change in ({"limit": 2}, {"weight": 2}, {"text_column": "id"}, {"split": "test"}):
        assert open_source(make_hub(HubDatasetConfig(path=folder, **change))).compute_fingerprint() != before
    write_json_lines(Path(folder) / "train-a.jsonl", *RECORDS)
    assert open_source(make_hub(HubDatasetConfig(path=folder))).compute_fingerprint() != before


def test_fingerprint_of_a_hub_data_set_contains_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    commits = iter(["c1", "c2"])
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *_, **__: f"/cache/snapshots/{next(commits)}"
    )
    before, after = (
        open_source(make_hub(HubDatasetConfig(path=path))).compute_fingerprint()
        for path in ("user/a", "user/b")
    )
    assert before[0]["revision"] == "c1"
    assert after[0]["revision"] == "c2"


def test_unavailable_data_set_raises_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(KrillError, match=r"user/c:train: cannot.*no route to host.*data=files"):
        read_texts(open_source(make_hub(HubDatasetConfig(path="user/c"))))


def test_missing_column_or_split_raises(tmp_path: Path) -> None:
    write_json_lines(tmp_path / "train.jsonl", {"body": "x"})
    with pytest.raises(UsageError, match="no column 'text'; it has body"):
        read_texts(open_source(make_hub(HubDatasetConfig(path=str(tmp_path)))))
    with pytest.raises(UsageError, match=":test: "):
        read_texts(open_source(make_hub(HubDatasetConfig(path=str(tmp_path), split="test"))))


@pytest.mark.parametrize("streaming", [False, True])
def test_column_that_is_not_text_raises(folder: str, streaming: bool) -> None:
    with pytest.raises(UsageError, match="column id holds int64, not text"):
        read_texts(
            open_source(make_hub(HubDatasetConfig(path=folder, text_column="id", streaming=streaming)))
        )


# --- local folders ------------------------------------------------------------------------------------------


def make_listed_folder(folder: Path, pattern: str, *texts: str) -> str:
    """Writes a clone of a Hub dataset: its README lists the data files; returns its path."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files: {pattern}\n---\n"
    )
    write_texts(folder / "data/train.jsonl", texts)
    return str(folder)


def read_folder(path: str, **settings: Any) -> tuple[Any, list[str]]:
    """Returns fingerprint and texts, read as a new process reads them."""
    source = open_source(make_hub(HubDatasetConfig(path=path, **settings)))
    return source.compute_fingerprint(), read_texts(source)


def test_changed_folder_gives_its_new_text_and_another_fingerprint(tmp_path: Path) -> None:
    path = make_listed_folder(tmp_path / "ds", "data/*.jsonl", "old")
    before, texts = read_folder(path)
    assert texts == ["old"]
    make_listed_folder(tmp_path / "ds", "data/*.jsonl", "new", "newer")
    after, texts = read_folder(path)
    assert (texts, after != before) == (["new", "newer"], True)
    make_listed_folder(tmp_path / "ds", "data/*.jsonl", "old")
    assert read_folder(path) == (before, ["old"])


def test_folders_of_one_last_name_give_their_own_text(tmp_path: Path) -> None:
    for parent in ("one", "two"):
        path = make_listed_folder(tmp_path / parent / "corpus", "data/*.jsonl", parent)
        assert read_folder(path)[1] == [parent]


def test_linked_and_outside_files_are_read_and_identified(tmp_path: Path) -> None:
    for name in ("linked", "outside"):
        write_texts(tmp_path / name / "a.jsonl", ["old"])
    path = make_listed_folder(tmp_path / "ds", "[data/*.jsonl, more/*.jsonl, ../outside/*.jsonl]", "own")
    (tmp_path / "ds/more").symlink_to("../linked")
    fingerprints = [read_folder(path)[0]]
    for name in ("linked", "outside"):
        write_texts(tmp_path / name / "a.jsonl", [f"new {name}"])
        fingerprint, texts = read_folder(path)
        assert f"new {name}" in texts
        assert fingerprint not in fingerprints
        fingerprints.append(fingerprint)


def test_fingerprint_of_a_folder_covers_only_what_is_read(tmp_path: Path) -> None:
    path = make_listed_folder(tmp_path / "a/ds", "data/*.jsonl", "text")
    config = make_hub(HubDatasetConfig(path=path))
    before = open_source(config).compute_fingerprint()
    for name in (".cache/huggingface/train.jsonl.metadata", ".git/index", "LICENSE"):
        (tmp_path / "a/ds" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "a/ds" / name).write_text("1")
    assert open_source(config).compute_fingerprint() == before
    (tmp_path / "link").symlink_to("a/ds")
    linked = open_source(make_hub(HubDatasetConfig(path=str(tmp_path / "link")))).compute_fingerprint()
    assert linked[0]["revision"] == before[0]["revision"]


def test_folder_that_changes_while_it_is_read_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_listed_folder(tmp_path / "ds", "data/*.jsonl", "old")
    load = hub._load_dataset

    def change_and_load(*args: Any) -> Any:
        make_listed_folder(tmp_path / "ds", "data/*.jsonl", "new")
        return load(*args)

    monkeypatch.setattr(hub, "_load_dataset", change_and_load)
    with pytest.raises(UsageError, match="changed while it was read"):
        read_folder(path)
    monkeypatch.undo()
    make_listed_folder(tmp_path / "ds", "data/*.jsonl", "old")
    assert read_folder(path)[1] == ["old"]


def test_broken_link_in_a_folder_raises(tmp_path: Path) -> None:
    path = make_listed_folder(tmp_path / "ds", "data/*.jsonl", "text")
    (tmp_path / "ds/data/more.jsonl").symlink_to("/nonexistent/blob")
    with pytest.raises(UsageError, match=r"more\.jsonl: is a link to nothing \(/nonexistent/blob\)"):
        read_folder(path)


def test_folder_of_several_kinds_is_read_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_texts(tmp_path / "a.jsonl", ["text"])
    (tmp_path / "b.txt").write_text("other")
    for streaming in (False, True):
        assert read_folder(str(tmp_path), streaming=streaming)[1] == ["text"]
    assert caplog.text.count("leaves out 1 of other kinds; to read all: data=files") == 1


def test_pointer_in_a_folder_raises(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n")
    with pytest.raises(UsageError, match=r"a\.txt: is a Git LFS pointer.*git lfs pull"):
        read_folder(str(tmp_path))


def test_saved_dataset_raises_with_the_command_that_converts_it(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{}")
    (tmp_path / "data-00000-of-00001.arrow").touch()
    with pytest.raises(UsageError, match=r"was written by save_to_disk.*to_parquet.*data\.paths="):
        read_folder(str(tmp_path))


def test_error_names_the_original_cause(tmp_path: Path) -> None:
    write_json_lines(tmp_path / "a.jsonl", {"text": "a", **{f"{index}" * 30: 1 for index in range(50)}})
    write_json_lines(tmp_path / "b.jsonl", {"text": "b", "other": "x"})
    with pytest.raises(UsageError, match=r"column names don't match.*data=files data\.paths=") as error:
        read_folder(str(tmp_path))
    assert len(str(error.value)) < 1000


def test_cached_copy_of_another_commit_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub

    write_json_lines(tmp_path / "train.jsonl", *RECORDS)
    cached = datasets.load_dataset(str(tmp_path), split="train", cache_dir=str(tmp_path / "cache"))
    file = Path(cached.cache_files[0]["filename"])
    copy = file.parent.rename(file.parent.parent / ("a" * 40)) / file.name
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_file(str(copy)))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: f"/snapshots/{'b' * 40}")
    with pytest.raises(KrillError, match="commit bbbbbbbb cannot be downloaded, and the cache has aaaaaaaa"):
        read_folder("user/d")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: f"/snapshots/{'a' * 40}")
    assert read_folder("user/e")[1] == TEXTS
