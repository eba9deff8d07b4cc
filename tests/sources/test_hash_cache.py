"""Tests of the hash cache: a cached hash is used while the file is unchanged, and never after a change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from krill.config.signature import hash_file
from krill.sources import hash_cache
from krill.sources.hash_cache import hash_file_cached, hash_files_cached


@pytest.fixture
def hashed_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """Returns the list of files hashed so far; caches hashes of files of any size, in the test's folder."""
    paths: list[Path] = []
    monkeypatch.setenv("KRILL_OUTPUTS", str(tmp_path / "outputs"))
    (tmp_path / "outputs").mkdir()
    monkeypatch.setattr(hash_cache, "MIN_CACHED_BYTES", 0)
    monkeypatch.setattr(hash_cache, "hash_file", lambda path: [paths.append(path), hash_file(path)][1])
    return paths


@pytest.fixture
def no_file_age_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches hashes of files that have just changed."""
    monkeypatch.setattr(hash_cache, "MIN_FILE_AGE_NS", -(10**9))


@pytest.mark.usefixtures("no_file_age_limit")
def test_a_file_is_hashed_once(tmp_path: Path, hashed_paths: list[Path]) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_text(path.name)
    first = hash_files_cached(paths)
    assert first == [hash_file(path) for path in paths]
    assert hash_files_cached(paths) == first
    assert sorted(hashed_paths) == paths


@pytest.mark.usefixtures("no_file_age_limit", "hashed_paths")
def test_any_change_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    status, first = path.stat(), hash_file_cached(path)
    path.write_text("two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # same size and modification time
    assert hash_file_cached(path) == hash_file(path) != first
    other = tmp_path / "b"
    other.write_text("six")
    os.replace(other, path)
    assert hash_file_cached(path) == hash_file(path)


@pytest.mark.usefixtures("no_file_age_limit")
def test_read_only_writes_no_entries(tmp_path: Path, hashed_paths: list[Path]) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    assert hash_file_cached(path, is_read_only=True) == hash_file_cached(path, is_read_only=True)
    assert hashed_paths == [path, path]
    assert not list((tmp_path / "outputs").iterdir())
    hash_file_cached(path)
    assert list((tmp_path / "outputs").iterdir())


def test_hash_of_a_recently_changed_file_is_not_cached(tmp_path: Path, hashed_paths: list[Path]) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    assert hash_file_cached(path) == hash_file_cached(path)
    assert len(hashed_paths) == 2
    assert not list((tmp_path / "outputs").iterdir())


@pytest.mark.usefixtures("no_file_age_limit")
@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b'{"state": 1}', b'{"state": {}, "xxh3_128": "0"}'])
def test_invalid_entry_is_ignored(tmp_path: Path, hashed_paths: list[Path], content: bytes) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    digest = hash_file_cached(path)
    (entry,) = (tmp_path / "outputs/.cache/digests").iterdir()
    entry.write_bytes(content)
    assert hash_file_cached(path) == digest
    assert len(hashed_paths) == 2


@pytest.mark.usefixtures("no_file_age_limit", "hashed_paths")
def test_unwritable_cache_does_not_raise(tmp_path: Path) -> None:
    (tmp_path / "outputs/.cache").write_text("a file is where the folder should be")
    (tmp_path / "a").write_text("one")
    assert hash_file_cached(tmp_path / "a") == hash_file(tmp_path / "a")


@pytest.mark.usefixtures("no_file_age_limit", "hashed_paths")
def test_outputs_folder_is_not_created_for_hashes(tmp_path: Path) -> None:
    """In a dry run nothing is written."""
    (tmp_path / "outputs").rmdir()
    (tmp_path / "a").write_text("one")
    hash_file_cached(tmp_path / "a")
    assert not (tmp_path / "outputs").exists()
