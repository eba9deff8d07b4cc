"""Tests of the CSV and TSV reader: round trips, and invalid rows that are skipped one by one."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from source_files import write_bytes

from krill.sources import csv_reader
from krill.sources.csv_reader import read_csv_texts
from krill.sources.formats import UnreadableRecord

CELL = st.text(st.sampled_from('ab"\t,\n\r 가'), max_size=8)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(CELL, CELL, CELL), min_size=1), suffix=st.sampled_from(["csv", "tsv"]))
def test_reads_back_what_the_csv_module_writes(
    tmp_path: Path, rows: list[tuple[str, ...]], suffix: str
) -> None:
    if suffix == "tsv":  # a quoted text with tabs and newlines can look like several unquoted rows
        rows = [tuple(cell.replace("\t", " ") for cell in row) for row in rows]
    path = tmp_path / f"a.{suffix}"
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, delimiter="," if suffix == "csv" else "\t", quoting=csv.QUOTE_ALL)
        writer.writerows([("id", "text", "more"), *rows])
    assert [text for _, text in read_csv_texts(path, "text")] == [text for _, text, _ in rows]


CASES = {
    "quoted newlines": (b'id,text\r\n1,"a\r\nb"\r\n\r\n2,c', [(2, "a\r\nb"), (5, "c")]),
    "NUL": (b"id,text\n1,a\x00b\n2,c\n", [(2, "a\x00b"), (3, "c")]),
    "BOM": (b"\xef\xbb\xbftext,id\na,1\n", [(2, "a")]),
    "quoted header": (b'"text","a\nb"\nx,1\n', [(3, "x")]),
    "invalid UTF-8": (b"id,text\n1,a\xff\n\xff,b\n", [(2, "invalid UTF-8"), (3, "b")]),
    "fewer fields": (b"id,text\n1\n2,b\n", [(2, "fewer fields than columns"), (3, "b")]),
    "more fields": (b"id,text\n1,a, b\n2,b,,\n", [(2, "more fields than columns"), (3, "b")]),
    "stray quotation mark": (
        b'id,text\n1,"a\n2,b\n3,"c"\n4,d\n', [(2, "invalid CSV"), (3, "b"), (4, "c"), (5, "d")],
    ),
    "unclosed quotation mark": (b'id,text\n1,"a\n2,b\n3,c', [(2, "invalid CSV"), (3, "b"), (4, "c")]),
    "text after a closing quotation mark": (b'id,text\n1,"a" b\n2,b\n', [(2, "invalid CSV"), (3, "b")]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_invalid_row_is_the_only_one_skipped(tmp_path: Path, case: str) -> None:
    content, expected = CASES[case]
    texts = list(read_csv_texts(write_bytes(tmp_path / "a.csv", content), "text"))
    assert [(line, getattr(text, "reason", text)) for line, text in texts] == expected


TSV = {
    "quotation marks in text": (b'id\ttext\n1\t"a\n2\tb" c\n3\t"d" e\n', ['"a', 'b" c', '"d" e']),
    "quotation marks that seem to pair": (b'id\ttext\n1\t"a\n2\tb"\n3\tc\n', ['"a', 'b"', "c"]),
    "quoted text of several lines": (b'id\ttext\n1\t"a\nb\n\nc"\n2\td\n', ["a\nb\n\nc", "d"]),
    "quoted text with a tab": (b'id\ttext\n1\t"a\tb"\n', ["a\tb"]),
}


@pytest.mark.parametrize("case", TSV)
def test_tsv_with_and_without_quoting(tmp_path: Path, case: str) -> None:
    content, expected = TSV[case]
    texts = read_csv_texts(write_bytes(tmp_path / "a.tsv", content), "text")
    assert [text for _, text in texts] == expected


def test_reads_fields_longer_than_the_default_limit_of_the_csv_module(tmp_path: Path) -> None:
    path = write_bytes(tmp_path / "a.csv", b"text\n" + b"x" * 1_000_000 + b"\ny\n")
    assert [len(text) for _, text in read_csv_texts(path, "text")] == [1_000_000, 1]


def test_unclosed_quotation_mark_consumes_at_most_the_field_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_reader, "MAX_FIELD_CHARACTERS", 1000)
    path = write_bytes(tmp_path / "a.csv", b'id,text\n1,"a\n' + b"2,b\n" * 1000)
    texts = [text for _, text in read_csv_texts(path, "text")]
    assert texts == [UnreadableRecord("invalid CSV"), *["b"] * 1000]
