"""Partial content is never visible under the final name."""

from __future__ import annotations

import errno
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from krill import atomic
from krill.errors import UsageError


def test_a_file_is_replaced_and_no_temporary_file_is_left(tmp_path: Path) -> None:
    path = tmp_path / "말.txt"
    atomic.write_text(path, "old")
    atomic.write_text(path, "새 글\n")
    assert path.read_text(encoding="utf-8") == "새 글\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    atomic.write_text(path, "old")

    def raise_disk_full(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(atomic.os, "fsync", raise_disk_full)
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


def build(folder: Path) -> None:
    (folder / "a").write_text("whole")


def fail_if_called(folder: Path) -> None:
    raise AssertionError(f"{folder} is built again")


def test_a_folder_is_built_once(tmp_path: Path) -> None:
    assert atomic.make_once(tmp_path / "deep" / "x", build)
    assert not atomic.make_once(tmp_path / "deep" / "x", fail_if_called)
    assert (tmp_path / "deep" / "x" / "a").read_text() == "whole"


def test_an_empty_folder_counts_as_missing(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    assert atomic.make_once(tmp_path / "x", build)
    assert (tmp_path / "x" / "a").exists()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_build_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def fail(folder: Path) -> None:
        build(folder)
        raise error("no")

    with pytest.raises(error, match="no"):
        atomic.make_once(tmp_path / "x", fail)
    assert not (tmp_path / "x").exists()
    assert not any(path.is_dir() for path in tmp_path.iterdir())


def test_the_partial_folder_of_a_killed_process_is_not_reused(tmp_path: Path) -> None:
    partial = tmp_path / ".x.partial"
    partial.mkdir()
    (partial / "half").write_text("half")
    assert atomic.make_once(tmp_path / "x", build)
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["a"]


def _build_slowly(folder: Path) -> None:
    time.sleep(0.2)
    build(folder)


def _make_once(folder: Path) -> bool:
    return atomic.make_once(folder, _build_slowly)


def test_one_process_builds_the_folder_and_the_others_wait(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        results = pool.map(_make_once, [tmp_path / "x"] * 3, chunksize=1)
    assert sorted(results) == [False, False, True]
    assert (tmp_path / "x" / "a").read_text() == "whole"


def test_errors_of_a_full_disk_name_the_folder(tmp_path: Path) -> None:
    def raise_disk_full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left") as error:
        atomic.make_once(tmp_path / "x", raise_disk_full, resume=True)
    assert error.value.filename == str(tmp_path / ".x.partial")


def test_a_file_in_place_of_the_folder_is_reported_before_the_build(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    with pytest.raises(NotADirectoryError):
        atomic.make_once(tmp_path / "file", fail_if_called)


def test_a_mount_point_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: path == tmp_path / "x")
    with pytest.raises(UsageError, match=r"x is a mount point, .*; use a folder in it, such as .*/x/result"):
        atomic.make_once(tmp_path / "x", fail_if_called)


def test_a_mount_point_of_the_same_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(source), None, str(target))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UsageError, match="x is a mount point"):
        atomic.make_once(tmp_path / "x", lambda partial: None)
    assert [path.name for path in tmp_path.iterdir()] == [".x.lock"]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no /proc")
def test_a_folder_that_the_system_does_not_keep_is_an_error_and_no_wait() -> None:
    for create in (
        lambda: atomic.make_once(Path("/proc/x"), fail_if_called),
        lambda: atomic.make_once(Path("/proc/x/y"), fail_if_called),
        lambda: atomic.create_timestamped_folder(Path("/proc/x"), "run"),
        lambda: atomic.create_folder(Path("/proc/x")),
    ):
        with pytest.raises(UsageError, match=r"/proc/x.* cannot be created.*KRILL_OUTPUTS"):
            create()
