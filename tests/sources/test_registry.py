"""Tests of the sources without files: one part each, in the order in which texts are yielded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from source_files import RULES, read_locations_and_texts

from krill.config.schema import CustomDataConfig, PythonDocsDataConfig
from krill.errors import UsageError
from krill.sources import python_docs
from krill.sources.registry import open_source
from krill.sources.source import SkippedRecords


def make_custom(reference: str) -> CustomDataConfig:
    return CustomDataConfig(**RULES, name="test", source="custom", read=reference, options={"count": 2})


def test_custom_function(tmp_path: Path) -> None:
    code = tmp_path / "custom.py"
    code.write_text("def read(count):\n    yield from ['a', None, 'b'] * count\n")
    config = make_custom(f"{code}:read")
    source, skipped = open_source(config), SkippedRecords()
    assert read_locations_and_texts(source, skipped) == [
        (f"{code}:read: item {number}", text) for number, text in ((1, "a"), (3, "b"), (4, "a"), (6, "b"))
    ]
    reasons = {
        "is not text but NoneType": {"records": 2, "places": [f"{code}:read: item {n}" for n in (2, 5)]}
    }
    assert skipped.reasons == reasons
    json.dumps(source.compute_fingerprint())


def test_long_text_of_a_custom_function_is_skipped(tmp_path: Path) -> None:
    code = tmp_path / "custom.py"
    code.write_text("def read(count):\n    yield from ['a', '가' * 40, 'b']\n")
    config = make_custom(f"{code}:read")
    source, skipped = open_source(config.model_copy(update={"max_record_bytes": 100})), SkippedRecords()
    assert [text for _, text in read_locations_and_texts(source, skipped)] == ["a", "b"]
    assert skipped.reasons["longer than data.max_record_bytes"]["places"] == [f"{code}:read: item 2"]
    assert source.compute_fingerprint() != open_source(config).compute_fingerprint()


@pytest.mark.parametrize(("result", "kind"), [("'one text'", "str"), ("b'x'", "bytes"), ("None", "NoneType")])
def test_a_custom_function_returns_several_texts(tmp_path: Path, result: str, kind: str) -> None:
    code = tmp_path / "custom.py"
    code.write_text(f"def read(count):\n    return {result}\n")
    with pytest.raises(UsageError, match=rf"custom\.py:read: returned {kind}; yield each text"):
        read_locations_and_texts(open_source(make_custom(f"{code}:read")))


def test_missing_custom_function_raises_when_opened(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        open_source(make_custom(f"{tmp_path}/custom.py:read"))


def test_python_docs() -> None:
    source = open_source(PythonDocsDataConfig(**RULES, name="test", source="python_docs"))
    documents = read_locations_and_texts(source)
    assert [text for _, text in documents] == list(python_docs.read_python_docs())
    assert documents[4][0] == "python_docs: document 5"
    assert [part.size for part in source.list_parts()] == [sum(len(text.encode()) for _, text in documents)]
