"""CSV and TSV: what writers write is read back, and what breaks the rules costs its row."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reading import written

from krill.sources import csv_reader
from krill.sources.csv_reader import read_csv_texts
from krill.sources.formats import UnreadableRecord

CELL = st.text(st.sampled_from('ab"\t,\n\r 가'), max_size=8)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(CELL, CELL, CELL), min_size=1), suffix=st.sampled_from(["csv", "tsv"]))
def test_what_python_writes_is_read_back(tmp_path: Path, rows: list[tuple[str, ...]], suffix: str) -> None:
    if suffix == "tsv":  # a text with both tabs and newlines may look like rows that know no quoting
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
    "a quotation mark too many": (
        b'id,text\n1,"a\n2,b\n3,"c"\n4,d\n', [(2, "invalid CSV"), (3, "b"), (4, "c"), (5, "d")],
    ),
    "one that nothing closes": (b'id,text\n1,"a\n2,b\n3,c', [(2, "invalid CSV"), (3, "b"), (4, "c")]),
    "quoting that ends too soon": (b'id,text\n1,"a" b\n2,b\n', [(2, "invalid CSV"), (3, "b")]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_bad_row_costs_that_row(tmp_path: Path, case: str) -> None:
    content, expected = CASES[case]
    found = list(read_csv_texts(written(tmp_path / "a.csv", content), "text"))
    assert [(line, getattr(text, "reason", text)) for line, text in found] == expected


TSV = {
    "quotation marks are text": (b'id\ttext\n1\t"a\n2\tb" c\n3\t"d" e\n', ['"a', 'b" c', '"d" e']),
    "also where they seem to pair": (b'id\ttext\n1\t"a\n2\tb"\n3\tc\n', ['"a', 'b"', "c"]),
    "a quoted text of several lines": (b'id\ttext\n1\t"a\nb\n\nc"\n2\td\n', ["a\nb\n\nc", "d"]),
    "a quoted text with a tab": (b'id\ttext\n1\t"a\tb"\n', ["a\tb"]),
}


@pytest.mark.parametrize("case", TSV)
def test_tsv_with_and_without_quoting(tmp_path: Path, case: str) -> None:
    content, expected = TSV[case]
    found = read_csv_texts(written(tmp_path / "a.tsv", content), "text")
    assert [text for _, text in found] == expected


def test_a_field_longer_than_csv_allows_by_itself(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", b"text\n" + b"x" * 1_000_000 + b"\ny\n")
    assert [len(text) for _, text in read_csv_texts(path, "text")] == [1_000_000, 1]


def test_an_open_quotation_swallows_no_more_than_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_reader, "MAX_FIELD_CHARACTERS", 1000)
    path = written(tmp_path / "a.csv", b'id,text\n1,"a\n' + b"2,b\n" * 1000)
    found = [text for _, text in read_csv_texts(path, "text")]
    assert found == [UnreadableRecord("invalid CSV"), *["b"] * 1000]
