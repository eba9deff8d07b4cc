"""Tests of the files source: every document once and in order for any parts; invalid records are skipped singly."""

from __future__ import annotations

import csv
import gzip
import json
import re
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from source_files import (
    RECORDS,
    TEXTS,
    compress_zstd,
    make_files,
    read_locations_and_texts,
    read_texts,
    write_bytes,
    write_json_lines,
    write_parquet,
)

from krill.errors import KrillError, UsageError
from krill.sources.registry import open_source
from krill.sources.source import Document, SkippedRecords


@pytest.fixture
def set_part_bytes(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Returns a function that sets the bytes per part."""
    return lambda size: monkeypatch.setattr("krill.sources.files.compute_part_bytes", lambda total: size)


def write_table(path: Path, rows: list[tuple[str, ...]], delimiter: str = ",") -> Path:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


# --- formats and entries ------------------------------------------------------------------------------------


def test_reads_documents_of_every_format(tmp_path: Path) -> None:
    write_json_lines(tmp_path / "a.jsonl", *RECORDS)
    write_json_lines(tmp_path / "b.json", *RECORDS)
    (tmp_path / "c.JSON").write_text(json.dumps(RECORDS, indent=2))
    write_parquet(tmp_path / "d.parquet", text=TEXTS, other=[1, 2, 3])
    write_parquet(tmp_path / "e.parquet", text=pa.array(TEXTS).dictionary_encode())
    write_parquet(tmp_path / "f.parquet", text=pa.array(TEXTS, pa.large_string()))
    write_table(tmp_path / "g.csv", [("id", "text"), *(("x", text) for text in TEXTS)])
    write_table(tmp_path / "h.tsv", [("text", "id"), *((text, "x") for text in TEXTS)], "\t")
    (tmp_path / "i.txt").write_text("one\n\nfile")
    (tmp_path / "j.JSONL").write_bytes(
        b"\xef\xbb\xbf" + json.dumps(RECORDS[0]).encode()
    )  # BOM, no end of line
    skipped = SkippedRecords()
    assert read_texts(open_source(make_files(tmp_path)), skipped) == [*TEXTS * 8, "one\n\nfile", TEXTS[0]]
    assert not skipped.reasons


@pytest.mark.parametrize("compress", [gzip.compress, compress_zstd])
def test_reads_compressed_files(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    suffix = ".gz" if compress is gzip.compress else ".zst"
    lines = write_json_lines(tmp_path / "lines", *RECORDS).read_bytes()
    rows = write_table(tmp_path / "rows", [("text",), *((text,) for text in TEXTS)], "\t").read_bytes()
    contents = {
        "a.jsonl": compress(lines[:20]) + compress(lines[20:]),  # concatenated members are one file
        "b.json": compress(json.dumps(RECORDS, indent=1).encode()),
        "c.csv": compress(rows),
        "d.tsv": compress(rows),
        "e.txt": compress(b"\xef\xbb\xbfone"),
    }
    for name, content in contents.items():
        write_bytes(tmp_path / f"{name}{suffix}", content)
    assert read_texts(open_source(make_files(tmp_path / f"*{suffix}"))) == [*TEXTS * 4, "one"]


@pytest.mark.parametrize("compress", [gzip.compress, compress_zstd])
def test_truncated_compressed_file_raises(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    lines = b"".join(json.dumps({"text": f"{index:x}" * 9}).encode() + b"\n" for index in range(60_000))
    content = compress(lines)
    path = write_bytes(
        tmp_path / f"a.jsonl{'.gz' if compress is gzip.compress else '.zst'}", content[: -len(content) // 4]
    )
    source, documents = open_source(make_files(path)), list[Document]()
    with pytest.raises(KrillError, match=r"a\.jsonl\.\w+:\d{5}: the rest cannot be read .Truncated"):
        documents.extend(source.read(source.list_parts()[0], SkippedRecords()))
    assert len(documents) > 10_000


def test_entries_are_files_folders_and_globs_in_the_given_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("글/둘.txt", "글/하나.txt", "글/.hidden.txt", "x/2.txt", "x/10.txt", "z[1].txt"):
        path = Path(name)
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    source = open_source(make_files("x/*.txt", "글", "z[1].txt"))
    documents = [
        (source.names[part.source], document.text)
        for part in source.list_parts()
        for document in source.read(part, SkippedRecords())
    ]
    assert documents == [
        ("*.txt", "x/10.txt"),
        ("*.txt", "x/2.txt"),
        ("글", "글/둘.txt"),
        ("글", "글/하나.txt"),
        ("z[1].txt", "z[1].txt"),
    ]


def test_names_of_sources_are_unique(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.txt").write_text(folder)
    source = open_source(make_files(tmp_path / "a/x.txt", tmp_path / "b/x.txt", tmp_path / "b/x.txt"))
    assert len(set(source.names)) == 3


def test_entries_have_their_own_weight_column_and_limit(tmp_path: Path) -> None:
    first = write_json_lines(tmp_path / "a.jsonl", {"text": None}, *RECORDS)
    second = write_parquet(tmp_path / "b.parquet", body=[f"b{index}" for index in range(9)], rows=2)
    source = open_source(
        make_files(
            {"path": str(first), "limit": 2, "weight": 0.5}, {"path": str(second), "text_column": "body"}
        )
    )
    assert source.weights == [0.5, 1.0]
    assert read_texts(source) == TEXTS[:2] + [f"b{index}" for index in range(9)]


def test_limit_applies_across_the_files_of_an_entry(
    tmp_path: Path, set_part_bytes: Callable[[int], None]
) -> None:
    for name in "abc":
        write_json_lines(tmp_path / f"{name}.jsonl", *({"text": f"{name}{index}"} for index in range(5)))
    set_part_bytes(1)
    source = open_source(make_files({"path": str(tmp_path), "limit": 7}))
    assert read_texts(source) == ["a0", "a1", "a2", "a3", "a4", "b0", "b1"]


# --- parts --------------------------------------------------------------------------------------------------


LINES = st.lists(st.sampled_from(["", "a", "가나다", "x" * 40]), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(contents=st.lists(LINES, min_size=1, max_size=3), size=st.integers(1, 400), lf=st.booleans())
def test_parts_of_json_lines_contain_every_line_once_with_its_number(
    tmp_path: Path, set_part_bytes: Callable[[int], None], contents: list[list[str]], size: int, lf: bool
) -> None:
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    expected = []
    for index, content in enumerate(contents):
        path = tmp_path / f"{index}.jsonl"
        lines = [json.dumps({"text": text}) if text else "" for text in [*content, "end"]]
        path.write_bytes("\r\n".join(lines).encode() + b"\n" * lf)
        expected += [(f"{path}:{line}", text) for line, text in enumerate([*content, "end"], 1) if text]
    set_part_bytes(size)
    source = open_source(make_files(tmp_path))
    assert read_locations_and_texts(source) == expected
    parts = source.list_parts()
    assert sum(part.size for part in parts) == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert all(part.size >= size for part in parts[:-1])


def test_parts_of_parquet_are_row_groups(tmp_path: Path, set_part_bytes: Callable[[int], None]) -> None:
    path = write_parquet(tmp_path / "a.parquet", text=[f"row {row}" for row in range(1, 96)], rows=10)
    set_part_bytes(1)
    source = open_source(make_files(path))
    assert [part.span for part in source.list_parts()] == [[[0, group, group + 1]] for group in range(10)]
    assert read_locations_and_texts(source) == [(f"{path}: row {row}", f"row {row}") for row in range(1, 96)]
    set_part_bytes(10**9)
    assert [part.span for part in open_source(make_files(path)).list_parts()] == [[[0, 0, 10]]]


def test_small_files_share_a_part_but_sources_do_not(tmp_path: Path) -> None:
    for name in ("a/1.txt", "a/2.txt", "a/3.jsonl", "b/1.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"text": "x"}')
    parts = open_source(make_files(tmp_path / "a", tmp_path / "b")).list_parts()
    assert [(part.source, len(part.span), part.size) for part in parts] == [(0, 3, 39), (1, 1, 13)]


def test_parts_and_fingerprint_do_not_depend_on_the_folder(
    tmp_path: Path, set_part_bytes: Callable[[int], None]
) -> None:
    set_part_bytes(20)
    (tmp_path / "x").mkdir()
    write_json_lines(tmp_path / "x/a.jsonl", *RECORDS)
    shutil.copytree(tmp_path / "x", tmp_path / "far/x")
    first, second = (open_source(make_files(tmp_path / folder)) for folder in ("x", "far/x"))
    assert first.list_parts() == second.list_parts()
    assert first.compute_fingerprint() == second.compute_fingerprint()


# --- fingerprint --------------------------------------------------------------------------------------------


def test_fingerprint_depends_on_content_and_settings_not_on_the_path(tmp_path: Path) -> None:
    first = write_json_lines(tmp_path / "a.jsonl", *RECORDS)
    (tmp_path / "elsewhere").mkdir()
    second = shutil.copy(first, tmp_path / "elsewhere/a.jsonl")
    before = open_source(make_files(first)).compute_fingerprint()
    assert open_source(make_files(second)).compute_fingerprint() == before
    assert open_source(make_files({"path": str(second)})).compute_fingerprint() == before
    json.dumps(before)
    for change in ({"limit": 2}, {"weight": 2}, {"text_column": "body"}):
        assert open_source(make_files({"path": str(second), **change})).compute_fingerprint() != before
    write_json_lines(first, *RECORDS, {"text": "more"})
    assert open_source(make_files(first)).compute_fingerprint() != before


# --- invalid records ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "\xff\xfe"}', "invalid UTF-8"),
        (b"\x00\x00\x00", "invalid JSON"),
        (b'{"text": "a\x00b"}', "invalid JSON"),
        (b'{"text": "cut', "invalid JSON"),
        (b"[" * 100_000, "invalid JSON"),
        (b'{"text": ' + b"[" * 5000 + b"]" * 5000 + b"}", "invalid JSON"),
        (b'{"text": 5}', "'text' is not text but int"),
        (b'{"text": NaN}', "'text' is not text but float"),
        (b'{"text": null}', "'text' is null"),
        (b'{"body": "x"}', "no 'text'"),
        (b'["text"]', "not a JSON object"),
        (b'"text"', "not a JSON object"),
    ],
)
@pytest.mark.parametrize("size", [1, 10**9])
def test_invalid_line_is_skipped_and_counted_with_its_location(
    tmp_path: Path, set_part_bytes: Callable[[int], None], size: int, line: bytes, reason: str
) -> None:
    path = write_json_lines(tmp_path / "나쁜.jsonl", *RECORDS[:1], b"", line, b" \r", *RECORDS[1:])
    set_part_bytes(size)
    skipped = SkippedRecords()
    assert read_texts(open_source(make_files(path)), skipped) == TEXTS
    assert skipped.reasons == {reason: {"records": 1, "places": [f"{path}:3"]}}


@pytest.mark.parametrize("last", [b'{"text": "cut', b'{"text": "cut"', b'{"text"', b"{"])
def test_truncated_last_line_is_skipped(tmp_path: Path, last: bytes) -> None:
    path = write_json_lines(tmp_path / "a.jsonl", *RECORDS)
    path.write_bytes(path.read_bytes() + last)
    skipped = SkippedRecords()
    assert read_texts(open_source(make_files(path)), skipped) == TEXTS
    assert skipped.reasons == {"invalid JSON": {"records": 1, "places": [f"{path}:4"]}}


def test_reads_all_json_that_python_accepts(tmp_path: Path) -> None:
    path = write_json_lines(
        tmp_path / "a.jsonl",
        b'{"text": "\\ud83d\\ude00 \\ud83d \\u0000"}',  # repaired later by cleaning
        b'{"text": "x", "score": NaN, "id": 123456789012345678901234567890}\r',
        b"\xe2\x80\xa8".join([b'{"text": "a', b'b"}']),  # U+2028 does not end a line
    )
    assert read_texts(open_source(make_files(path))) == ["😀 \ud83d \x00", "x", "a\u2028b"]


def test_reads_a_very_long_line(tmp_path: Path) -> None:
    path = write_json_lines(tmp_path / "a.jsonl", {"text": "가" * 5_000_000}, RECORDS[0])
    source = open_source(make_files(path))
    assert [len(text) for text in read_texts(source)] == [5_000_000, len(TEXTS[0])]
    assert len(source.list_parts()) == 2


def test_null_and_invalid_parquet_values_are_skipped(tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"], pa.binary()).buffers())
    column = pa.chunked_array([pa.array(["a", None]), broken, pa.array(["b"])])
    path = write_parquet(tmp_path / "a.parquet", text=column)
    skipped = SkippedRecords()
    assert read_texts(open_source(make_files(path)), skipped) == ["a", "b"]
    assert skipped.reasons == {
        "'text' is null": {"records": 1, "places": [f"{path}: row 2"]},
        "invalid UTF-8": {"records": 1, "places": [f"{path}: row 3"]},
    }


def test_lines_far_into_a_file_are_located_by_byte_offset(
    tmp_path: Path, set_part_bytes: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("krill.sources.files.MAX_NUMBERED_BYTES", 30)
    set_part_bytes(30)
    path = write_json_lines(tmp_path / "a.jsonl", *RECORDS)
    locations = [location for location, _ in read_locations_and_texts(open_source(make_files(path)))]
    assert locations == [f"{path}:1", f"{path}:2", f"{path}: line 1 after byte 46"]
    assert path.read_bytes()[46:].startswith(b'{"text": "document 2"')


# --- invalid files ------------------------------------------------------------------------------------------


def test_column_missing_in_every_line_raises(tmp_path: Path) -> None:
    path = write_json_lines(tmp_path / "a.jsonl", {"body": "x", "id": 1}, {"body": "y"})
    with pytest.raises(UsageError, match=r"a\.jsonl: no column 'text'; it has body, id.*data\.text_column="):
        read_texts(open_source(make_files(path)))
    assert read_texts(open_source(make_files(path, column="body"))) == ["x", "y"]


def test_records_of_a_later_part_without_the_column_are_skipped_and_counted(
    tmp_path: Path, set_part_bytes: Callable[[int], None]
) -> None:
    path = write_json_lines(tmp_path / "a.jsonl", *RECORDS, *[{"body": "x"}] * 50)
    set_part_bytes(40)
    skipped = SkippedRecords()
    assert read_texts(open_source(make_files(path)), skipped) == TEXTS
    assert skipped.reasons["no 'text'"]["records"] == 50
    assert skipped.reasons["no 'text'"]["places"][0] == f"{path}:4"


@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl", b"\n \n"), ("a.json", b"[ ]"), ("a.csv", b"text\n\n")]
)
def test_file_without_records_raises(tmp_path: Path, name: str, content: bytes) -> None:
    with pytest.raises(UsageError, match=r"a\.\w+: has no (records|row)"):
        read_texts(open_source(make_files(write_bytes(tmp_path / name, content))))


def test_corrupt_parquet_data_raises(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", text=[f"{index}" * 50 for index in range(20_000)])
    content = bytearray(path.read_bytes())
    content[1000:60_000] = bytes(59_000)
    path.write_bytes(content)
    with pytest.raises(KrillError, match=r"a\.parquet.*: the rest cannot be read"):
        read_texts(open_source(make_files(path)))


def test_deleted_file_raises(tmp_path: Path) -> None:
    path = write_json_lines(tmp_path / "a.jsonl", *RECORDS)
    source = open_source(make_files(path))
    part: Any = source.list_parts()[0]
    path.unlink()
    with pytest.raises(KrillError, match=r"a\.jsonl: the rest cannot be read .*No such file"):
        list(source.read(part, SkippedRecords()))


def test_column_named_twice_in_json_counts_as_its_last(tmp_path: Path) -> None:
    path = write_json_lines(tmp_path / "a.jsonl", b'{"text": "a", "text": "b"}')
    assert read_texts(open_source(make_files(path))) == ["b"]


def test_parquet_with_other_columns_of_one_name_is_read(tmp_path: Path) -> None:
    table = pa.table([pa.array([1]), pa.array([2]), pa.array(["a"])], names=["id", "id", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert read_texts(open_source(make_files(tmp_path))) == ["a"]


# --- layouts of JSON ----------------------------------------------------------------------------------------

LAYOUTS = {
    "array in .jsonl": ("a.jsonl", json.dumps(RECORDS)),
    "array in .jsonl.gz": ("a.jsonl.gz", json.dumps(RECORDS, indent=1)),
    "array with a record per line": ("a.jsonl", "[\n" + ",\n".join(map(json.dumps, RECORDS)) + "\n]\n"),
    "pretty objects": ("a.json", "\n".join(json.dumps(record, indent=2) for record in RECORDS)),
    "pretty objects in .jsonl": ("a.jsonl", "".join(json.dumps(record, indent=2) for record in RECORDS)),
    "pretty object with its first key": (
        "a.json",
        '{"id": 1,\n"text": "document 0"}\n{"text": "document 1"}',
    ),
    "one line": ("a.json", json.dumps(RECORDS[0])),
    "BOM": ("a.json", "\ufeff" + json.dumps(RECORDS[0], indent=2)),
}


@pytest.mark.parametrize("case", LAYOUTS)
@pytest.mark.parametrize("block", [7, 2**20])
def test_json_is_read_whatever_its_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, block: int
) -> None:
    name, text = LAYOUTS[case]
    path = write_bytes(tmp_path / name, compress_gzip_if(name, text.encode()))
    monkeypatch.setattr("krill.sources.json_array.READ_BLOCK_BYTES", block)
    skipped = SkippedRecords()
    texts = read_texts(open_source(make_files(path)), skipped)
    assert texts == TEXTS[: len(texts)]
    assert len(texts) == text.count('"text"')
    assert not skipped.reasons


def compress_gzip_if(name: str, content: bytes) -> bytes:
    return gzip.compress(content) if name.endswith(".gz") else content


@pytest.mark.parametrize(
    "first",
    [
        b'{"text": "cut',
        b'{"text": "a"} junk',
        b'{"text": "a",',
        b"{",
        b"[WARN] x",
        b'{"text"',
        b"[1, 2]",
        b'[{"text": "a"}]',
    ],
)
def test_damaged_first_line_costs_only_that_line(tmp_path: Path, first: bytes) -> None:
    path = write_json_lines(tmp_path / "a.jsonl", first, *RECORDS)
    assert read_texts(open_source(make_files(path))) == TEXTS


def test_location_and_fingerprint_of_an_unusual_layout(tmp_path: Path) -> None:
    array = write_bytes(tmp_path / "a.jsonl", json.dumps([*RECORDS, {"text": None}]).encode())
    source, skipped = open_source(make_files(array)), SkippedRecords()
    assert read_texts(source, skipped) == TEXTS
    assert skipped.reasons["'text' is null"]["places"] == [f"{array}: record 4"]
    assert source.compute_fingerprint()[0]["files"][0].startswith(".jsonl array ")


def test_malformed_object_of_several_lines_raises_with_its_line(tmp_path: Path) -> None:
    path = write_bytes(tmp_path / "a.json", b'{\n  "id": 1\n  "text": "x"\n}\n')
    with pytest.raises(UsageError, match=r"a\.json:3: invalid JSON"):
        read_texts(open_source(make_files(path)))


def test_comma_after_a_record_is_no_damage(tmp_path: Path) -> None:
    lines = [json.dumps(record).encode() + b"," for record in RECORDS]
    skipped = SkippedRecords()
    path = write_json_lines(tmp_path / "a.jsonl", *lines[:-1], lines[-1] + b" \r")
    assert read_texts(open_source(make_files(path)), skipped) == TEXTS
    assert not skipped.reasons


def test_files_joined_with_their_bom_are_read(tmp_path: Path) -> None:
    bom = b"\xef\xbb\xbf"
    values = write_bytes(
        tmp_path / "a.json", b"".join(bom + json.dumps(r, indent=1).encode() for r in RECORDS)
    )
    assert read_texts(open_source(make_files(values))) == TEXTS
    table = write_bytes(tmp_path / "a.csv", (bom + b"text,id\na,1\n") * 2)
    skipped = SkippedRecords()
    assert read_texts(open_source(make_files(table)), skipped) == ["a", "a"]
    assert skipped.reasons == {"repeated header": {"records": 1, "places": [f"{table}:3"]}}


def test_bom_at_the_start_of_any_line_is_no_damage(tmp_path: Path) -> None:
    bom = b"\xef\xbb\xbf"
    lines = [bom + json.dumps(record).encode() for record in RECORDS]
    path = write_json_lines(tmp_path / "a.jsonl", *lines, bom)
    skipped = SkippedRecords()
    assert read_texts(open_source(make_files(path)), skipped) == TEXTS
    assert not skipped.reasons


SEPARATORS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"
"""Characters other than CR and LF at which str.splitlines splits."""


def test_only_lf_ends_a_line(tmp_path: Path) -> None:
    text = f"a{SEPARATORS}b"
    folder = tmp_path / f"글{SEPARATORS}"
    folder.mkdir()
    record = json.dumps({"text": "x\u2028y\u2029z\x85"}, ensure_ascii=False).encode()
    write_json_lines(folder / f"a{SEPARATORS}.jsonl", record, b'{"text": 5}')
    write_bytes(folder / "b.csv", f'text\n{text}\n"{text}"\n'.encode())
    write_bytes(folder / "c.tsv", f'id\ttext\n1\t"{text}\n'.encode())
    write_bytes(folder / "d.txt", text.encode())
    skipped = SkippedRecords()
    texts = read_texts(open_source(make_files(folder)), skipped)
    assert texts == ["x\u2028y\u2029z\x85", text, text, f'"{text}', text]
    assert skipped.reasons["'text' is not text but int"]["places"] == [f"{folder}/a{SEPARATORS}.jsonl:2"]


# --- files of which nearly nothing can be read --------------------------------------------------------------

UNREADABLE = {
    "html": (
        "a.jsonl",
        b"<!DOCTYPE html>\n<html>\n</html>\n",
        r"none of 3 records .*begins with '<!DOCTYPE html>",
    ),
    "single quotes": ("a.jsonl", b"{'text': 'a'}\n" * 5 + b'{"text": "a"}\n', "only 1 of 6 records"),
    "lists": ("a.jsonl", b'["a"]\n["b"]\n', r"none of 2 records can be read \(not a JSON object 2\)"),
    "list of texts": ("a.json", b'["a", "b"]', "none of 2 records"),
    "column of lists": ("a.jsonl", b'{"text": ["a"]}\n', "'text' is not text but list 1"),
    "latin-1": ("a.jsonl", '{"text": "été"}\n'.encode("latin-1"), "is not UTF-8 .*iconv -f ENCODING"),
    "cp949 array": ("a.json", '[{"text": "한국어"}, {"x": "a\nb"}]'.encode("cp949"), "is CP949"),
    "csv": ("a.csv", b"text\n" + b'"a\n' * 9, "none of 9 records can be read .invalid CSV 9"),
    "late byte": ("a.txt", b"a\n" * 2**16 + b"\xff", "none of 1 records can be read .invalid UTF-8"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_file_of_which_nearly_nothing_can_be_read_raises(tmp_path: Path, case: str) -> None:
    name, content, message = UNREADABLE[case]
    good = write_json_lines(tmp_path / "good.jsonl", *RECORDS)
    with pytest.raises(UsageError, match=rf"{re.escape(name)}: .*{message}") as error:
        read_texts(open_source(make_files(good, write_bytes(tmp_path / name, content))))
    assert len(str(error.value)) < 800


def test_beginning_of_a_large_file_is_judged_by_many_records(
    tmp_path: Path, set_part_bytes: Callable[[int], None]
) -> None:
    set_part_bytes(1)
    path = write_json_lines(tmp_path / "a.jsonl", b"damaged", *RECORDS)
    assert read_texts(open_source(make_files(path))) == TEXTS
    set_part_bytes(200)
    path = write_json_lines(tmp_path / "a.jsonl", *[b"damaged"] * 30, *RECORDS)
    with pytest.raises(UsageError, match="none of 25 records can be read"):
        read_texts(open_source(make_files(path)))


def test_parquet_in_another_encoding_raises(tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"], pa.binary()).buffers())
    path = write_parquet(tmp_path / "a.parquet", text=pa.chunked_array([broken] * 3))
    with pytest.raises(UsageError, match=r"none of 3 records can be read .invalid UTF-8 3.*another encoding"):
        read_texts(open_source(make_files(path)))


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_file_of_nulls_is_skipped_and_counted(tmp_path: Path, name: str) -> None:
    if name == "a.parquet":
        write_parquet(tmp_path / name, text=pa.nulls(3))
    else:
        write_json_lines(tmp_path / name, *[{"text": None}] * 3)
    write_json_lines(tmp_path / "b.jsonl", *RECORDS)
    skipped = SkippedRecords()
    assert read_texts(open_source(make_files(tmp_path)), skipped) == TEXTS
    assert skipped.reasons["'text' is null"]["records"] == 3


def test_invalid_value_of_a_dictionary_column_costs_only_its_rows(tmp_path: Path) -> None:
    values = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.array([0, 1, 2], pa.int32()).buffers()[1], pa.py_buffer(b"a\xff")]
    )
    column = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 0]), values, safe=False)
    path = write_parquet(tmp_path / "a.parquet", text=column)
    skipped = SkippedRecords()
    assert read_texts(open_source(make_files(path)), skipped) == ["a", "a"]
    assert skipped.reasons["invalid UTF-8"] == {"records": 1, "places": [f"{path}: row 2"]}


# --- long records -------------------------------------------------------------------------------------------


def make_long_files(folder: Path) -> Iterator[Path]:
    """Yields files whose second record of three is too long for a limit of 100 bytes."""
    texts = ["a", "가" * 40, "b"]
    lines = [json.dumps({"text": text}, ensure_ascii=False).encode() for text in texts]
    yield write_json_lines(folder / "a.jsonl", *lines)
    yield write_bytes(folder / "b.jsonl.gz", gzip.compress(b"\n".join(lines)))
    yield write_bytes(folder / "c.json", json.dumps([{"text": text} for text in texts]).encode())
    yield write_table(folder / "d.csv", [("text",), *((text,) for text in texts)])
    yield write_table(folder / "e.tsv", [("id", "text"), *(("1", text) for text in texts)], "\t")
    yield write_parquet(folder / "f.parquet", text=texts)


def test_long_record_is_skipped_and_counted(tmp_path: Path) -> None:
    for path in make_long_files(tmp_path):
        config = make_files(path).model_copy(update={"max_record_bytes": 100})
        source, skipped = open_source(config), SkippedRecords()
        assert read_texts(source, skipped) == ["a", "b"], path
        ((reason, counts),) = skipped.reasons.items()
        assert (reason, counts["records"]) == ("longer than data.max_record_bytes", 1)
        assert counts["places"][0].startswith(str(path))
        assert source.compute_fingerprint() != open_source(make_files(path)).compute_fingerprint()


def test_long_text_file_raises(tmp_path: Path) -> None:
    path = write_bytes(tmp_path / "a.txt.gz", gzip.compress(bytes(10**6).replace(b"\0", b"a")))
    config = make_files(path).model_copy(update={"max_record_bytes": 10**5})
    with pytest.raises(
        UsageError, match=r"longer than data\.max_record_bytes.* set a higher data\.max_record_bytes"
    ):
        read_texts(open_source(config))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_compressed_record_does_not_fill_the_memory(tmp_path: Path, name: str) -> None:
    beginning = {"a.jsonl": b'{"text": "', "a.json": b'[{"text": "', "a.csv": b"text\n", "a.txt": b""}[name]
    path = tmp_path / f"{name}.gz"
    with gzip.open(path, "wb", 1) as file:
        file.write(beginning)
        for _ in range(24):
            file.write(b"a" * 2**20)
    source = open_source(make_files(path).model_copy(update={"max_record_bytes": 2**20}))
    tracemalloc.start()
    with pytest.raises(UsageError, match=r"longer than data\.max_record_bytes"):
        read_texts(source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * 2**20


def test_zeros_after_compressed_data_are_ignored(tmp_path: Path) -> None:
    lines = write_json_lines(tmp_path / "a.jsonl", *RECORDS).read_bytes()
    path = write_bytes(tmp_path / "b.jsonl.gz", gzip.compress(lines) + bytes(10_000))
    assert read_texts(open_source(make_files(path))) == TEXTS


def test_records_in_a_list_within_an_object_are_an_error_with_the_command_that_extracts_them(
    tmp_path: Path,
) -> None:
    path = write_bytes(tmp_path / "a.json", json.dumps({"version": 1, "data": RECORDS}, indent=1).encode())
    with pytest.raises(UsageError, match="no column 'text'; it has version, data") as error:
        read_texts(open_source(make_files(path)))
    assert f"""jq -c '.["data"][]' {path} > a.jsonl""" in str(error.value)
