"""A kept hash is used while the file is what it was, and never after it changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from krill.config.signature import file_digest
from krill.sources import digests
from krill.sources.digests import content_digest, content_digests


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """The files that were hashed; files of any size are kept, in a folder of this test."""
    read: list[Path] = []
    monkeypatch.setenv("KRILL_OUTPUTS", str(tmp_path / "outputs"))
    (tmp_path / "outputs").mkdir()
    monkeypatch.setattr(digests, "KEPT_BYTES", 0)
    monkeypatch.setattr(digests, "file_digest", lambda path: [read.append(path), file_digest(path)][1])
    return read


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as left alone at once."""
    monkeypatch.setattr(digests, "QUIET_NS", -(10**9))


@pytest.mark.usefixtures("settled")
def test_a_file_is_hashed_once(tmp_path: Path, hashed: list[Path]) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_text(path.name)
    first = content_digests(paths)
    assert first == [file_digest(path) for path in paths]
    assert content_digests(paths) == first
    assert sorted(hashed) == paths


@pytest.mark.usefixtures("settled", "hashed")
def test_any_change_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    status, first = path.stat(), content_digest(path)
    path.write_text("two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # size and time of change as before
    assert content_digest(path) == file_digest(path) != first
    other = tmp_path / "b"
    other.write_text("six")
    os.replace(other, path)
    assert content_digest(path) == file_digest(path)


@pytest.mark.usefixtures("settled")
def test_a_dry_run_keeps_none(tmp_path: Path, hashed: list[Path]) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    with digests.none_kept():
        assert content_digest(path) == content_digest(path)
    assert hashed == [path, path]
    assert not list((tmp_path / "outputs").iterdir())
    content_digest(path)
    assert list((tmp_path / "outputs").iterdir())


def test_a_file_that_has_just_changed_is_not_kept(tmp_path: Path, hashed: list[Path]) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    assert content_digest(path) == content_digest(path)
    assert len(hashed) == 2
    assert not list((tmp_path / "outputs").iterdir())


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b'{"state": 1}', b'{"state": {}, "xxh3_128": "0"}'])
def test_a_broken_entry_counts_as_none(tmp_path: Path, hashed: list[Path], content: bytes) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    digest = content_digest(path)
    (entry,) = (tmp_path / "outputs/.cache/digests").iterdir()
    entry.write_bytes(content)
    assert content_digest(path) == digest
    assert len(hashed) == 2


@pytest.mark.usefixtures("settled", "hashed")
def test_results_that_cannot_be_written_are_no_error(tmp_path: Path) -> None:
    (tmp_path / "outputs/.cache").write_text("a file is where the folder should be")
    (tmp_path / "a").write_text("one")
    assert content_digest(tmp_path / "a") == file_digest(tmp_path / "a")


@pytest.mark.usefixtures("settled", "hashed")
def test_no_folder_is_made_for_hashes_alone(tmp_path: Path) -> None:
    """As in a dry run: nothing is written."""
    (tmp_path / "outputs").rmdir()
    (tmp_path / "a").write_text("one")
    content_digest(tmp_path / "a")
    assert not (tmp_path / "outputs").exists()
