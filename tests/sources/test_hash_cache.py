"""A kept hash is used while the file is what it was, and never after it changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from krill.config.signature import hash_file
from krill.sources import hash_cache
from krill.sources.hash_cache import hash_file_cached, hash_files_cached


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """The files that were hashed; files of any size are kept, in a folder of this test."""
    read: list[Path] = []
    monkeypatch.setenv("KRILL_OUTPUTS", str(tmp_path / "outputs"))
    (tmp_path / "outputs").mkdir()
    monkeypatch.setattr(hash_cache, "MIN_CACHED_BYTES", 0)
    monkeypatch.setattr(hash_cache, "hash_file", lambda path: [read.append(path), hash_file(path)][1])
    return read


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as left alone at once."""
    monkeypatch.setattr(hash_cache, "MIN_FILE_AGE_NS", -(10**9))


@pytest.mark.usefixtures("settled")
def test_a_file_is_hashed_once(tmp_path: Path, hashed: list[Path]) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_text(path.name)
    first = hash_files_cached(paths)
    assert first == [hash_file(path) for path in paths]
    assert hash_files_cached(paths) == first
    assert sorted(hashed) == paths


@pytest.mark.usefixtures("settled", "hashed")
def test_any_change_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    status, first = path.stat(), hash_file_cached(path)
    path.write_text("two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # size and time of change as before
    assert hash_file_cached(path) == hash_file(path) != first
    other = tmp_path / "b"
    other.write_text("six")
    os.replace(other, path)
    assert hash_file_cached(path) == hash_file(path)


@pytest.mark.usefixtures("settled")
def test_a_dry_run_keeps_none(tmp_path: Path, hashed: list[Path]) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    assert hash_file_cached(path, is_read_only=True) == hash_file_cached(path, is_read_only=True)
    assert hashed == [path, path]
    assert not list((tmp_path / "outputs").iterdir())
    hash_file_cached(path)
    assert list((tmp_path / "outputs").iterdir())


def test_a_file_that_has_just_changed_is_not_kept(tmp_path: Path, hashed: list[Path]) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    assert hash_file_cached(path) == hash_file_cached(path)
    assert len(hashed) == 2
    assert not list((tmp_path / "outputs").iterdir())


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b'{"state": 1}', b'{"state": {}, "xxh3_128": "0"}'])
def test_a_broken_entry_counts_as_none(tmp_path: Path, hashed: list[Path], content: bytes) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    digest = hash_file_cached(path)
    (entry,) = (tmp_path / "outputs/.cache/digests").iterdir()
    entry.write_bytes(content)
    assert hash_file_cached(path) == digest
    assert len(hashed) == 2


@pytest.mark.usefixtures("settled", "hashed")
def test_results_that_cannot_be_written_are_no_error(tmp_path: Path) -> None:
    (tmp_path / "outputs/.cache").write_text("a file is where the folder should be")
    (tmp_path / "a").write_text("one")
    assert hash_file_cached(tmp_path / "a") == hash_file(tmp_path / "a")


@pytest.mark.usefixtures("settled", "hashed")
def test_no_folder_is_made_for_hashes_alone(tmp_path: Path) -> None:
    """As in a dry run: nothing is written."""
    (tmp_path / "outputs").rmdir()
    (tmp_path / "a").write_text("one")
    hash_file_cached(tmp_path / "a")
    assert not (tmp_path / "outputs").exists()
