"""Checkpoints are saved atomically, verification names every problem, and the oldest are deleted."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krill.atomic import format_json
from krill.checksum import read_checksummed_json, write_checksummed_json
from krill.config.signature import compute_signature
from krill.errors import KrillError
from krill.runs import checkpoints


def save(folder: Path, step: int, text: str = "weights") -> Path:
    with checkpoints.staged_checkpoint(folder) as partial:
        checkpoint = partial / f"checkpoint-{step}"
        (checkpoint / "shards").mkdir(parents=True)
        (checkpoint / "model").write_text(text)
        (checkpoint / "shards" / "0").write_bytes(bytes(range(256)))
    return folder / f"checkpoint-{step}"


def save_and_raise(folder: Path, error: Exception) -> None:
    with checkpoints.staged_checkpoint(folder) as partial:
        (partial / "checkpoint-10").mkdir()
        (partial / "checkpoint-10" / "model").write_text("half")
        raise error


def list_steps(folder: Path) -> list[int]:
    return [checkpoints.parse_step(path) for path in checkpoints.list_checkpoints(folder)]


def flip_bit(file: Path, position: int = 0) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


# --- saving ------------------------------------------------------------------------------------------------


def test_checkpoints_are_ordered_by_step_not_by_name(tmp_path: Path) -> None:
    for step in (100, 9, 10):
        save(tmp_path, step)
    assert list_steps(tmp_path) == [9, 10, 100]


def test_a_missing_folder_has_no_checkpoints(tmp_path: Path) -> None:
    assert checkpoints.list_checkpoints(tmp_path / "none") == []
    assert checkpoints.find_newest_valid(tmp_path / "none") == (None, [])


def test_a_checkpoint_is_not_listed_until_it_is_complete(tmp_path: Path) -> None:
    with checkpoints.staged_checkpoint(tmp_path) as partial:
        (partial / "checkpoint-5").mkdir()
        assert checkpoints.list_checkpoints(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


def test_a_failed_save_leaves_nothing_behind(tmp_path: Path) -> None:
    save(tmp_path, 5)
    with pytest.raises(OSError, match="the disk is gone"):
        save_and_raise(tmp_path, OSError(errno.EIO, "the disk is gone"))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


def test_the_remains_of_an_interrupted_save_are_removed_by_the_next_save(tmp_path: Path) -> None:
    (tmp_path / checkpoints.PARTIAL_FOLDER / "checkpoint-10").mkdir(parents=True)
    (tmp_path / checkpoints.PARTIAL_FOLDER / "checkpoint-10" / "model").write_text("half")
    assert checkpoints.list_checkpoints(tmp_path) == []
    save(tmp_path, 15)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-15"]


def test_the_remains_of_an_interrupted_save_are_removed_on_resume(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / checkpoints.PARTIAL_FOLDER / "checkpoint-10").mkdir(parents=True)
    with caplog.at_level(logging.INFO):
        assert checkpoints.find_newest_valid(tmp_path) == (None, [])
    assert "removing an interrupted save" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_saving_a_step_again_replaces_its_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 5, "old")
    checkpoint = save(tmp_path, 5, "new")
    assert (checkpoint / "model").read_text() == "new"
    assert checkpoints.verify(checkpoint) == []
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
    ],
    ids=["a file", "a quota", "safetensors", "torch.save"],
)
def test_a_full_disk_is_reported_as_such(error: Exception, tmp_path: Path) -> None:
    save(tmp_path, 5)
    with pytest.raises(
        KrillError, match=r"not enough space for another .*run the same command to resume"
    ) as raised:
        save_and_raise(tmp_path, error)
    assert raised.value.exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


def test_a_checkpoint_without_space_for_its_manifest_does_not_appear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raise_disk_full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("krill.manifest.write_checksummed_json", raise_disk_full)
    with pytest.raises(KrillError, match="not enough space for another checkpoint"):
        save(tmp_path, 5)
    assert list(tmp_path.iterdir()) == []


# --- resume ------------------------------------------------------------------------------------------------

Damage = Callable[[Path], object]
DAMAGES: dict[str, tuple[Damage, str]] = {
    "truncated": (lambda c: os.truncate(c / "model", 3), "checkpoint-10/model has 3 bytes instead of 7"),
    "missing": (lambda c: (c / "model").unlink(), "checkpoint-10/model is missing"),
    "flipped": (lambda c: flip_bit(c / "shards" / "0", 99), "checkpoint-10/shards/0 was changed since"),
    "no manifest": (lambda c: (c / "manifest.json").unlink(), "checkpoint-10/manifest.json is missing"),
    "half a manifest": (lambda c: os.truncate(c / "manifest.json", 40), "manifest.json is damaged"),
    "no file": (lambda c: (shutil.rmtree(c), c.write_text("")), "checkpoint-10/manifest.json cannot be read"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_corrupt_checkpoint_is_reported_and_the_previous_one_is_used(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage, message = DAMAGES[kind]
    good, bad = save(tmp_path, 5), save(tmp_path, 10)
    assert checkpoints.find_newest_valid(tmp_path) == (bad, [])
    damage(bad)
    (problem,) = checkpoints.verify(bad)
    caplog.clear()
    assert checkpoints.find_newest_valid(tmp_path) == (good, [bad])
    assert caplog.messages == [f"skipping corrupt checkpoint: {problem}"]
    assert message in problem
    assert bad.exists()


def test_every_corrupt_file_is_reported(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 5)
    (checkpoint / "model").unlink()
    flip_bit(checkpoint / "shards" / "0")
    assert len(checkpoints.verify(checkpoint)) == 2


@settings(max_examples=60, deadline=None)
@given(
    position=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
    file=st.sampled_from(("model", "shards/0", "manifest.json")),
)
def test_a_flipped_bit_is_detected_anywhere(
    position: float, bit: int, file: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    checkpoint = save(tmp_path_factory.mktemp("run"), 5)
    content = bytearray((checkpoint / file).read_bytes())
    content[int(position * len(content))] ^= 1 << bit
    (checkpoint / file).write_bytes(content)
    assert checkpoints.verify(checkpoint)


def test_a_copy_under_the_name_of_another_step_is_skipped(tmp_path: Path) -> None:
    good = save(tmp_path, 20)
    copy = tmp_path / "checkpoint-30"
    shutil.copytree(good, copy)
    assert checkpoints.find_newest_valid(tmp_path) == (good, [copy])
    (problem,) = checkpoints.verify(copy)
    assert problem.endswith(
        "checkpoint-30 was saved at step 20; rename it to checkpoint-20 to resume from it"
    )


@pytest.mark.parametrize("name", ["checkpoint-best", "checkpoint-20 (copy)", "checkpoint-020"])
def test_a_name_without_a_step_is_not_listed_but_prevents_a_start_from_scratch(
    name: str, tmp_path: Path
) -> None:
    save(tmp_path, 20).rename(tmp_path / name)
    assert checkpoints.list_checkpoints(tmp_path) == []
    with pytest.raises(KrillError, match="none of the checkpoints is valid"):
        checkpoints.find_newest_valid(tmp_path)
    good = save(tmp_path, 10)
    assert checkpoints.find_newest_valid(tmp_path) == (good, [])


def test_a_run_without_a_valid_checkpoint_does_not_start_from_scratch_unasked(tmp_path: Path) -> None:
    for step in (5, 10):
        flip_bit(save(tmp_path, step) / "model")
    with pytest.raises(KrillError, match="resume=false to start from scratch in a new folder"):
        checkpoints.find_newest_valid(tmp_path)
    assert list_steps(tmp_path) == [5, 10]


def test_a_manifest_of_another_format_is_not_read(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 5)
    manifest = read_checksummed_json(checkpoint / "manifest.json")
    write_checksummed_json(checkpoint / "manifest.json", manifest | {"format": 99})
    (problem,) = checkpoints.verify(checkpoint)
    assert "has format 99" in problem


def test_a_manifest_with_a_signature_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 5)
    manifest = read_checksummed_json(checkpoint / "manifest.json")
    earlier = manifest | {"signature": compute_signature(manifest)}
    (checkpoint / "manifest.json").write_text(format_json(earlier))
    assert checkpoints.verify(checkpoint) == []
    (checkpoint / "manifest.json").write_text(format_json(earlier | {"step": 6}))
    (problem,) = checkpoints.verify(checkpoint)
    assert "is damaged (it has changed since it was written)" in problem


# --- retention ---------------------------------------------------------------------------------------------


def test_the_oldest_are_deleted(tmp_path: Path) -> None:
    for step in (8, 9, 10, 11):
        save(tmp_path, step)
    checkpoints.rotate_checkpoints(tmp_path, keep=2)
    assert list_steps(tmp_path) == [10, 11]
    checkpoints.rotate_checkpoints(tmp_path, keep=5)
    assert list_steps(tmp_path) == [10, 11]


def test_protected_steps_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    checkpoints.rotate_checkpoints(tmp_path, keep=1, keep_steps={2, 99})
    assert list_steps(tmp_path) == [2, 4]


@pytest.mark.parametrize("kind", ["truncated", "missing", "no manifest", "half a manifest"])
def test_an_incomplete_checkpoint_is_neither_counted_nor_deleted(kind: str, tmp_path: Path) -> None:
    for step in (8, 9, 10):
        save(tmp_path, step)
    DAMAGES[kind][0](tmp_path / "checkpoint-10")
    checkpoints.rotate_checkpoints(tmp_path, keep=2)
    assert list_steps(tmp_path) == [8, 9, 10]
    save(tmp_path, 11)
    checkpoints.rotate_checkpoints(tmp_path, keep=2)
    assert list_steps(tmp_path) == [9, 10, 11]


def test_a_known_corrupt_checkpoint_is_neither_counted_nor_deleted(tmp_path: Path) -> None:
    for step in (8, 9, 10):
        save(tmp_path, step)
    flip_bit(tmp_path / "checkpoint-9" / "model")
    checkpoints.rotate_checkpoints(tmp_path, keep=1, corrupt=[tmp_path / "checkpoint-9"])
    assert list_steps(tmp_path) == [9, 10]


def test_an_interrupted_deletion_leaves_no_partial_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (8, 9):
        save(tmp_path, step)

    def interrupt(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", interrupt)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.rotate_checkpoints(tmp_path, keep=1)
    assert list_steps(tmp_path) == [9]
    assert checkpoints.find_newest_valid(tmp_path) == (tmp_path / "checkpoint-9", [])
    assert not (tmp_path / checkpoints.PARTIAL_FOLDER).exists()
