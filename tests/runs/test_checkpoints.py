"""Checkpoints appear whole or not at all, are told apart by step, and the oldest go."""

from __future__ import annotations

from pathlib import Path

import pytest

from krill.runs import checkpoints


def save(folder: Path, step: int, text: str = "weights") -> None:
    with checkpoints.aside(folder) as partial:
        (partial / f"checkpoint-{step}").mkdir()
        (partial / f"checkpoint-{step}" / "model").write_text(text)


def test_they_are_ordered_by_step_not_by_name(tmp_path: Path) -> None:
    for step in (100, 9, 10):
        save(tmp_path, step)
    assert [checkpoints.step(path) for path in checkpoints.found(tmp_path)] == [9, 10, 100]


def test_no_folder_holds_none(tmp_path: Path) -> None:
    assert checkpoints.found(tmp_path / "none") == []


def test_nothing_is_seen_until_it_is_whole(tmp_path: Path) -> None:
    with checkpoints.aside(tmp_path) as partial:
        (partial / "checkpoint-5").mkdir()
        assert checkpoints.found(tmp_path) == []
    assert checkpoints.found(tmp_path) == [tmp_path / "checkpoint-5"]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


def test_a_save_that_failed_leaves_nothing_to_go_on_from(tmp_path: Path) -> None:
    save(tmp_path, 5)

    def cut() -> None:
        with checkpoints.aside(tmp_path) as partial:
            (partial / "checkpoint-10").mkdir()
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        cut()
    assert checkpoints.found(tmp_path) == [tmp_path / "checkpoint-5"]


def test_what_a_cut_save_left_is_removed_by_the_next(tmp_path: Path) -> None:
    (tmp_path / checkpoints.PARTIAL / "checkpoint-10").mkdir(parents=True)
    (tmp_path / checkpoints.PARTIAL / "checkpoint-10" / "model").write_text("half")
    assert checkpoints.found(tmp_path) == []
    save(tmp_path, 15)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-15"]


def test_the_same_step_again_takes_the_place_of_the_first(tmp_path: Path) -> None:
    save(tmp_path, 5, "old")
    save(tmp_path, 5, "new")
    assert (tmp_path / "checkpoint-5" / "model").read_text() == "new"


def test_the_oldest_go(tmp_path: Path) -> None:
    for step in (8, 9, 10, 11):
        save(tmp_path, step)
    checkpoints.rotate(tmp_path, keep=2)
    assert [checkpoints.step(path) for path in checkpoints.found(tmp_path)] == [10, 11]
    checkpoints.rotate(tmp_path, keep=5)
    assert len(checkpoints.found(tmp_path)) == 2
