"""Files give every document once, in order, whatever the parts; a bad record costs that record only."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reading import GOOD, TEXTS, files, json_lines, parquet, places_and_texts, texts, written, zstd

from krill.errors import KrillError, UsageError
from krill.sources.registry import open_source
from krill.sources.source import Document, SkippedRecords


@pytest.fixture
def goal(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how many bytes a part holds."""
    return lambda size: monkeypatch.setattr("krill.sources.files.part_bytes", lambda total: size)


def table(path: Path, rows: list[tuple[str, ...]], delimiter: str = ",") -> Path:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


# --- what is read ------------------------------------------------------------------------------------------


def test_every_format_gives_its_documents(tmp_path: Path) -> None:
    json_lines(tmp_path / "a.jsonl", *GOOD)
    json_lines(tmp_path / "b.json", *GOOD)
    (tmp_path / "c.JSON").write_text(json.dumps(GOOD, indent=2))
    parquet(tmp_path / "d.parquet", text=TEXTS, other=[1, 2, 3])
    parquet(tmp_path / "e.parquet", text=pa.array(TEXTS).dictionary_encode())
    parquet(tmp_path / "f.parquet", text=pa.array(TEXTS, pa.large_string()))
    table(tmp_path / "g.csv", [("id", "text"), *(("x", text) for text in TEXTS)])
    table(tmp_path / "h.tsv", [("text", "id"), *((text, "x") for text in TEXTS)], "\t")
    (tmp_path / "i.txt").write_text("one\n\nfile")
    (tmp_path / "j.JSONL").write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD[0]).encode())  # BOM, no end of line
    skipped = SkippedRecords()
    assert texts(open_source(files(tmp_path)), skipped) == [*TEXTS * 8, "one\n\nfile", TEXTS[0]]
    assert not skipped.reasons


@pytest.mark.parametrize("compress", [gzip.compress, zstd])
def test_compressed_files_are_read_as_they_are(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    suffix = ".gz" if compress is gzip.compress else ".zst"
    lines = json_lines(tmp_path / "lines", *GOOD).read_bytes()
    rows = table(tmp_path / "rows", [("text",), *((text,) for text in TEXTS)], "\t").read_bytes()
    contents = {
        "a.jsonl": compress(lines[:20]) + compress(lines[20:]),  # members one after the other are one file
        "b.json": compress(json.dumps(GOOD, indent=1).encode()),
        "c.csv": compress(rows),
        "d.tsv": compress(rows),
        "e.txt": compress(b"\xef\xbb\xbfone"),
    }
    for name, content in contents.items():
        written(tmp_path / f"{name}{suffix}", content)
    assert texts(open_source(files(tmp_path / f"*{suffix}"))) == [*TEXTS * 4, "one"]


@pytest.mark.parametrize("compress", [gzip.compress, zstd])
def test_a_compressed_file_that_was_cut_is_an_error(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    lines = b"".join(json.dumps({"text": f"{index:x}" * 9}).encode() + b"\n" for index in range(60_000))
    whole = compress(lines)
    path = written(
        tmp_path / f"a.jsonl{'.gz' if compress is gzip.compress else '.zst'}", whole[: -len(whole) // 4]
    )
    source, got = open_source(files(path)), list[Document]()
    with pytest.raises(KrillError, match=r"a\.jsonl\.\w+:\d{5}: what follows cannot be read .Truncated"):
        got.extend(source.read(source.list_parts()[0], SkippedRecords()))
    assert len(got) > 10_000


def test_entries_are_files_folders_and_globs_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("글/둘.txt", "글/하나.txt", "글/.hidden.txt", "x/2.txt", "x/10.txt", "z[1].txt"):
        path = Path(name)
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    source = open_source(files("x/*.txt", "글", "z[1].txt"))
    found = [
        (source.names[part.source], document.text)
        for part in source.list_parts()
        for document in source.read(part, SkippedRecords())
    ]
    assert found == [
        ("*.txt", "x/10.txt"),
        ("*.txt", "x/2.txt"),
        ("글", "글/둘.txt"),
        ("글", "글/하나.txt"),
        ("z[1].txt", "z[1].txt"),
    ]


def test_sources_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.txt").write_text(folder)
    source = open_source(files(tmp_path / "a/x.txt", tmp_path / "b/x.txt", tmp_path / "b/x.txt"))
    assert len(set(source.names)) == 3


def test_entries_have_weight_column_and_limit(tmp_path: Path) -> None:
    first = json_lines(tmp_path / "a.jsonl", {"text": None}, *GOOD)
    second = parquet(tmp_path / "b.parquet", body=[f"b{index}" for index in range(9)], rows=2)
    source = open_source(
        files({"path": str(first), "limit": 2, "weight": 0.5}, {"path": str(second), "text_column": "body"})
    )
    assert source.weights == [0.5, 1.0]
    assert texts(source) == TEXTS[:2] + [f"b{index}" for index in range(9)]


def test_a_limit_goes_over_the_files_of_its_entry(tmp_path: Path, goal: Callable[[int], None]) -> None:
    for name in "abc":
        json_lines(tmp_path / f"{name}.jsonl", *({"text": f"{name}{index}"} for index in range(5)))
    goal(1)
    source = open_source(files({"path": str(tmp_path), "limit": 7}))
    assert texts(source) == ["a0", "a1", "a2", "a3", "a4", "b0", "b1"]


# --- parts -------------------------------------------------------------------------------------------------


LINES = st.lists(st.sampled_from(["", "a", "가나다", "x" * 40]), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(contents=st.lists(LINES, min_size=1, max_size=3), size=st.integers(1, 400), lf=st.booleans())
def test_any_parts_of_json_lines_give_every_line_once_and_its_number(
    tmp_path: Path, goal: Callable[[int], None], contents: list[list[str]], size: int, lf: bool
) -> None:
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    expected = []
    for index, content in enumerate(contents):
        path = tmp_path / f"{index}.jsonl"
        lines = [json.dumps({"text": text}) if text else "" for text in [*content, "end"]]
        path.write_bytes("\r\n".join(lines).encode() + b"\n" * lf)
        expected += [(f"{path}:{line}", text) for line, text in enumerate([*content, "end"], 1) if text]
    goal(size)
    source = open_source(files(tmp_path))
    assert places_and_texts(source) == expected
    parts = source.list_parts()
    assert sum(part.size for part in parts) == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert all(part.size >= size for part in parts[:-1])


def test_parts_of_parquet_are_row_groups(tmp_path: Path, goal: Callable[[int], None]) -> None:
    path = parquet(tmp_path / "a.parquet", text=[f"row {row}" for row in range(1, 96)], rows=10)
    goal(1)
    source = open_source(files(path))
    assert [part.span for part in source.list_parts()] == [[[0, group, group + 1]] for group in range(10)]
    assert places_and_texts(source) == [(f"{path}: row {row}", f"row {row}") for row in range(1, 96)]
    goal(10**9)
    assert [part.span for part in open_source(files(path)).list_parts()] == [[[0, 0, 10]]]


def test_small_files_share_a_part_and_sources_do_not(tmp_path: Path) -> None:
    for name in ("a/1.txt", "a/2.txt", "a/3.jsonl", "b/1.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"text": "x"}')
    parts = open_source(files(tmp_path / "a", tmp_path / "b")).list_parts()
    assert [(part.source, len(part.span), part.size) for part in parts] == [(0, 3, 39), (1, 1, 13)]


def test_parts_do_not_depend_on_the_place(tmp_path: Path, goal: Callable[[int], None]) -> None:
    goal(20)
    (tmp_path / "x").mkdir()
    json_lines(tmp_path / "x/a.jsonl", *GOOD)
    shutil.copytree(tmp_path / "x", tmp_path / "far/x")
    first, second = (open_source(files(tmp_path / place)) for place in ("x", "far/x"))
    assert first.list_parts() == second.list_parts()
    assert first.compute_fingerprint() == second.compute_fingerprint()


# --- the fingerprint ---------------------------------------------------------------------------------------


def test_fingerprint_is_what_is_read_not_the_place(tmp_path: Path) -> None:
    first = json_lines(tmp_path / "a.jsonl", *GOOD)
    (tmp_path / "elsewhere").mkdir()
    second = shutil.copy(first, tmp_path / "elsewhere/a.jsonl")
    before = open_source(files(first)).compute_fingerprint()
    assert open_source(files(second)).compute_fingerprint() == before
    assert open_source(files({"path": str(second)})).compute_fingerprint() == before
    json.dumps(before)
    for change in ({"limit": 2}, {"weight": 2}, {"text_column": "body"}):
        assert open_source(files({"path": str(second), **change})).compute_fingerprint() != before
    json_lines(first, *GOOD, {"text": "more"})
    assert open_source(files(first)).compute_fingerprint() != before


# --- a bad record costs that record ------------------------------------------------------------------------


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
def test_a_bad_line_is_skipped_counted_and_named(
    tmp_path: Path, goal: Callable[[int], None], size: int, line: bytes, reason: str
) -> None:
    path = json_lines(tmp_path / "나쁜.jsonl", *GOOD[:1], b"", line, b" \r", *GOOD[1:])
    goal(size)
    skipped = SkippedRecords()
    assert texts(open_source(files(path)), skipped) == TEXTS
    assert skipped.reasons == {reason: {"records": 1, "places": [f"{path}:3"]}}


@pytest.mark.parametrize("last", [b'{"text": "cut', b'{"text": "cut"', b'{"text"', b"{"])
def test_a_last_line_that_was_cut_is_skipped(tmp_path: Path, last: bytes) -> None:
    path = json_lines(tmp_path / "a.jsonl", *GOOD)
    path.write_bytes(path.read_bytes() + last)
    skipped = SkippedRecords()
    assert texts(open_source(files(path)), skipped) == TEXTS
    assert skipped.reasons == {"invalid JSON": {"records": 1, "places": [f"{path}:4"]}}


def test_what_python_reads_as_json_is_read(tmp_path: Path) -> None:
    path = json_lines(
        tmp_path / "a.jsonl",
        b'{"text": "\\ud83d\\ude00 \\ud83d \\u0000"}',  # reaches cleaning, which mends it
        b'{"text": "x", "score": NaN, "id": 123456789012345678901234567890}\r',
        b"\xe2\x80\xa8".join([b'{"text": "a', b'b"}']),  # U+2028 ends no line
    )
    assert texts(open_source(files(path))) == ["😀 \ud83d \x00", "x", "a\u2028b"]


def test_a_very_long_line(tmp_path: Path) -> None:
    path = json_lines(tmp_path / "a.jsonl", {"text": "가" * 5_000_000}, GOOD[0])
    source = open_source(files(path))
    assert [len(text) for text in texts(source)] == [5_000_000, len(TEXTS[0])]
    assert len(source.list_parts()) == 2


def test_null_and_broken_parquet_values_are_skipped(tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"], pa.binary()).buffers())
    column = pa.chunked_array([pa.array(["a", None]), broken, pa.array(["b"])])
    path = parquet(tmp_path / "a.parquet", text=column)
    skipped = SkippedRecords()
    assert texts(open_source(files(path)), skipped) == ["a", "b"]
    assert skipped.reasons == {
        "'text' is null": {"records": 1, "places": [f"{path}: row 2"]},
        "invalid UTF-8": {"records": 1, "places": [f"{path}: row 3"]},
    }


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_a_text_file_of_other_encoding_is_skipped(tmp_path: Path, name: str) -> None:
    content = "첫 줄\n".encode() + "둘째".encode("cp949")
    path = written(tmp_path / name, gzip.compress(content) if name.endswith(".gz") else content)
    skipped = SkippedRecords()
    assert texts(open_source(files(path)), skipped) == []
    assert skipped.reasons == {"invalid UTF-8": {"records": 1, "places": [f"{path}:2"]}}


def test_lines_far_into_a_file_are_named_by_their_byte(
    tmp_path: Path, goal: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("krill.sources.files.MAX_NUMBERED_BYTES", 30)
    goal(30)
    path = json_lines(tmp_path / "a.jsonl", *GOOD)
    places = [place for place, _ in places_and_texts(open_source(files(path)))]
    assert places == [f"{path}:1", f"{path}:2", f"{path}: line 1 after byte 46"]
    assert path.read_bytes()[46:].startswith(b'{"text": "document 2"')


# --- a bad file is an error --------------------------------------------------------------------------------


def test_a_column_that_no_line_has_is_an_error(tmp_path: Path) -> None:
    path = json_lines(tmp_path / "a.jsonl", {"body": "x", "id": 1}, {"body": "y"})
    with pytest.raises(UsageError, match=r"a\.jsonl: no column 'text'; it has body, id.*data\.text_column="):
        texts(open_source(files(path)))
    assert texts(open_source(files(path, column="body"))) == ["x", "y"]


def test_a_later_part_without_the_column_is_skipped_and_counted(
    tmp_path: Path, goal: Callable[[int], None]
) -> None:
    path = json_lines(tmp_path / "a.jsonl", *GOOD, *[{"body": "x"}] * 50)
    goal(40)
    skipped = SkippedRecords()
    assert texts(open_source(files(path)), skipped) == TEXTS
    assert skipped.reasons["no 'text'"]["records"] == 50
    assert skipped.reasons["no 'text'"]["places"][0] == f"{path}:4"


@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl", b"\n \n"), ("a.json", b"[ ]"), ("a.csv", b"text\n\n")]
)
def test_a_file_without_a_record_is_an_error(tmp_path: Path, name: str, content: bytes) -> None:
    with pytest.raises(UsageError, match=r"a\.\w+: holds no (record|row)"):
        texts(open_source(files(written(tmp_path / name, content))))


def test_parquet_that_breaks_half_way_is_an_error(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", text=[f"{index}" * 50 for index in range(20_000)])
    content = bytearray(path.read_bytes())
    content[1000:60_000] = bytes(59_000)
    path.write_bytes(content)
    with pytest.raises(KrillError, match=r"a\.parquet.*: what follows cannot be read"):
        texts(open_source(files(path)))


def test_a_file_that_has_gone_is_an_error(tmp_path: Path) -> None:
    path = json_lines(tmp_path / "a.jsonl", *GOOD)
    source = open_source(files(path))
    part: Any = source.list_parts()[0]
    path.unlink()
    with pytest.raises(KrillError, match=r"a\.jsonl: what follows cannot be read .*No such file"):
        list(source.read(part, SkippedRecords()))
