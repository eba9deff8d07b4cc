"""Nothing half-written is ever visible under its final name."""

from __future__ import annotations

import errno
import multiprocessing
import time
from pathlib import Path

import pytest

from krill import atomic


def test_a_file_is_replaced_whole_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "말.txt"
    atomic.write_text(path, "old")
    atomic.write_text(path, "새 글\n")
    assert path.read_text(encoding="utf-8") == "새 글\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    atomic.write_text(path, "old")

    def full(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        atomic.write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_readable_and_strict(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    atomic.write_json(path, {"이름": [1, None]})
    assert path.read_text(encoding="utf-8") == '{\n  "이름": [\n    1,\n    null\n  ]\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        atomic.write_json(path, {"loss": float("nan")})
    assert "이름" in path.read_text(encoding="utf-8")


def fill(folder: Path) -> None:
    (folder / "a").write_text("whole")


def refuse(folder: Path) -> None:
    raise AssertionError(f"made {folder} again")


def test_a_folder_is_made_once(tmp_path: Path) -> None:
    assert atomic.make_once(tmp_path / "deep" / "x", fill)
    assert not atomic.make_once(tmp_path / "deep" / "x", refuse)
    assert (tmp_path / "deep" / "x" / "a").read_text() == "whole"


def test_an_empty_folder_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    assert atomic.make_once(tmp_path / "x", fill)
    assert (tmp_path / "x" / "a").exists()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_maker_that_fails_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def fail(folder: Path) -> None:
        fill(folder)
        raise error("no")

    with pytest.raises(error, match="no"):
        atomic.make_once(tmp_path / "x", fail)
    assert not (tmp_path / "x").exists()
    assert not any(path.is_dir() for path in tmp_path.iterdir())


def test_what_a_killed_maker_left_is_not_taken_over(tmp_path: Path) -> None:
    partial = tmp_path / ".x.partial"
    partial.mkdir()
    (partial / "half").write_text("half")
    assert atomic.make_once(tmp_path / "x", fill)
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["a"]


def _slowly(folder: Path) -> None:
    time.sleep(0.2)
    fill(folder)


def _make(folder: Path) -> bool:
    return atomic.make_once(folder, _slowly)


def test_of_several_processes_one_makes_it_and_the_others_wait(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        made = pool.map(_make, [tmp_path / "x"] * 3, chunksize=1)
    assert sorted(made) == [False, False, True]
    assert (tmp_path / "x" / "a").read_text() == "whole"


def test_a_full_disk_names_the_folder_and_a_file_in_the_way_is_told_first(tmp_path: Path) -> None:
    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left") as failed:
        atomic.make_once(tmp_path / "x", full, resumes=True)
    assert failed.value.filename == str(tmp_path / ".x.partial")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(NotADirectoryError):
        atomic.make_once(tmp_path / "file", refuse)
