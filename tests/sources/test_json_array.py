"""Tests of the JSON array reader: element by element, for any block boundaries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from source_files import write_bytes

from krill.errors import UsageError
from krill.sources import formats, json_array
from krill.sources.formats import UnreadableRecord
from krill.sources.json_array import iterate_array_elements

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "READ_BLOCK_BYTES", 5)
    monkeypatch.setattr(json_array, "READ_BLOCK_BYTES", 1)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(VALUES, max_size=8), ascii_only=st.booleans(), indent=st.sampled_from([None, 1]))
def test_elements_equal_those_of_the_json_module(
    tmp_path: Path, small_blocks: None, values: list[Any], ascii_only: bool, indent: int | None
) -> None:
    content = json.dumps(values, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "replace")
    path = write_bytes(tmp_path / "a.json", b"\xef\xbb\xbf " + content + b"\n")
    assert list(iterate_array_elements(path)) == list(enumerate(json.loads(content), 1))


MALFORMED = {
    "invalid element": (b'[\n{"text": "a"},\n{"text": }\n]', "a.json:3: invalid JSON"),
    "missing comma": (b'[\n{"text": "a"}\n\n{"text": "b"}\n]', "a.json:4: invalid JSON"),
    "truncated in a text": (b'[\n{"text": "a"},\n{"text": "b', "a.json:3: invalid JSON"),
    "truncated after an element": (b'[\n{"text": "a"}', "a.json:2: invalid JSON"),
    "truncated after a comma": (b'[\n{"text": "a"},\n', "a.json:3: invalid JSON"),
    "text after the array": (
        b'[\n{"text": "a"}]\n\n{"text": "b"}',
        "a.json:4: invalid JSON .text after the array",
    ),
    "nested too deeply": (b'[{"text": "a"},\n' + b"[" * 100_000, "a.json:2: invalid JSON .nested too deeply"),
}


@pytest.mark.parametrize("case", MALFORMED)
@pytest.mark.parametrize("block", [7, 2**20])
def test_malformed_array_raises_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, block: int
) -> None:
    monkeypatch.setattr(formats, "READ_BLOCK_BYTES", block)
    content, message = MALFORMED[case]
    elements: list[tuple[int, Any]] = []
    with pytest.raises(UsageError, match=message):
        elements.extend(iterate_array_elements(write_bytes(tmp_path / "a.json", content)))
    assert elements[:1] == [(1, {"text": "a"})]


def test_invalid_utf8_skips_one_element(tmp_path: Path) -> None:
    path = write_bytes(tmp_path / "a.json", b'[{"text": "a"}, {"text": "\xff"}, {"text": "\\udcff"}]')
    records = [record for _, record in iterate_array_elements(path)]
    assert records == [{"text": "a"}, UnreadableRecord("invalid UTF-8"), {"text": "\udcff"}]
