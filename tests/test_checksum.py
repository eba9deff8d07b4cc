"""Tests of JSON files with a checksum: any change of a bit and any cut is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from krill.checksum import ChecksumError, read_checksummed_json, write_checksummed_json

VALUE = {"글": ['"\n', {"checksum": ""}], "number": 1e-05}


def test_a_value_is_read_back(tmp_path: Path) -> None:
    write_checksummed_json(tmp_path / "a.json", VALUE)
    assert read_checksummed_json(tmp_path / "a.json") == VALUE


def test_every_changed_bit_and_every_cut_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_checksummed_json(path, VALUE)
    content = path.read_bytes()
    changes = [content[:length] for length in range(len(content))] + [content + b"\n"]
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        changes.append(bytes(changed))
    for changed in changes:
        path.write_bytes(changed)
        with pytest.raises(ChecksumError):
            read_checksummed_json(path)


@pytest.mark.parametrize("content", ["{}", "[]", "1", '{"checksum": ""}', "[" * 10_000])
def test_other_json_has_no_checksum(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ChecksumError):
        read_checksummed_json(tmp_path / "a.json")
