"""Tests of files with a checksum: any change of a bit and any cut is noticed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from krill.checksum import (
    ChecksumError,
    read_checksummed_json,
    read_checksummed_text,
    write_checksummed_json,
    write_checksummed_text,
)

VALUE = {"글": ['"\n', {"checksum": ""}], "number": 1e-05}


def iterate_changes(content: bytes, step: int = 1) -> Iterator[bytes]:
    """Yields the content with each bit changed, or each `step`-th, each of its beginnings, and with a line more."""
    for bit in range(0, 8 * len(content), step):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)
    yield from (content[:length] for length in range(len(content)))
    yield content + b"\n"


def test_a_value_is_read_back(tmp_path: Path) -> None:
    write_checksummed_json(tmp_path / "a.json", VALUE)
    assert read_checksummed_json(tmp_path / "a.json") == VALUE


def test_every_changed_bit_and_every_cut_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_checksummed_json(path, VALUE)
    for changed in iterate_changes(path.read_bytes()):
        path.write_bytes(changed)
        with pytest.raises(ChecksumError):
            read_checksummed_json(path)


@pytest.mark.parametrize("content", ["{}", "[]", "1", '{"checksum": ""}', "[" * 10_000])
def test_other_json_has_no_checksum(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ChecksumError):
        read_checksummed_json(tmp_path / "a.json")


def test_an_object_of_an_earlier_version_is_read_but_not_one_that_lost_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}\n')
    assert read_checksummed_json(path, lambda value: value == {"a": 1}) == {"a": 1}
    with pytest.raises(ChecksumError, match="has changed since it was written"):
        read_checksummed_json(path, lambda value: False)
    write_checksummed_json(path, VALUE)
    for changed in iterate_changes(path.read_bytes(), step=5):
        path.write_bytes(changed)
        with pytest.raises(ChecksumError):
            read_checksummed_json(path, lambda value: "checksum" not in value)


def test_damaged_text_is_noticed_or_is_the_same_below_the_comment(tmp_path: Path) -> None:
    path, text = tmp_path / "a.yaml", "lr: 0.001\n이름: a\n"
    write_checksummed_text(path, text)
    assert read_checksummed_text(path) == text
    for changed in iterate_changes(path.read_bytes(), step=5):
        path.write_bytes(changed)
        try:
            read = read_checksummed_text(path)
        except ChecksumError:
            continue
        assert read in (text, "") or read.startswith("#")
        assert read.endswith(text) or "\n" not in read, "all of it, or nothing but a part of the comment"
    path.write_text(text)
    assert read_checksummed_text(path) == text, "of an earlier version"
