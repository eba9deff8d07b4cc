"""Tests of data.paths: all problems with its files are reported at once, before any work."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from omegaconf import OmegaConf
from source_files import (
    RECORDS,
    TEXTS,
    compress_zstd,
    make_files,
    write_bytes,
    write_json_lines,
    write_parquet,
)

from krill.cli.compose import compose_config
from krill.config.overrides import quote_override
from krill.config.schema import FilesDataConfig
from krill.errors import UsageError
from krill.sources.paths import resolve_paths
from krill.sources.registry import open_source


def write_truncated_parquet(path: Path) -> Path:
    write_parquet(path, text=TEXTS)
    return write_bytes(path, path.read_bytes()[:-20])


def make_folder(path: Path) -> Path:
    path.mkdir()
    return path


MakePath = Callable[[Path], Path]
PROBLEMS: dict[str, tuple[MakePath, str]] = {
    "missing": (lambda p: p / "없음.jsonl", "없음.jsonl: no such file"),
    "empty": (lambda p: write_bytes(p / "a.jsonl", b""), "a.jsonl: is empty"),
    "empty gz": (lambda p: write_bytes(p / "a.txt.gz", gzip.compress(b"")), "a.txt.gz: is empty"),
    "empty zst": (lambda p: write_bytes(p / "a.jsonl.zst", compress_zstd(b"")), "a.jsonl.zst: is empty"),
    "empty parquet": (lambda p: write_bytes(p / "a.parquet", b""), "a.parquet: is empty"),
    "no rows": (lambda p: write_parquet(p / "a.parquet", text=pa.array([], pa.string())), "has no rows"),
    "truncated parquet": (lambda p: write_truncated_parquet(p / "a.parquet"), "is not a complete Parquet file"),
    "other suffix": (lambda p: write_bytes(p / "a.md", b"x"), "is a .md file; krill reads .jsonl"),
    "other compression": (lambda p: write_bytes(p / "a.jsonl.bz2", b"x"), "is a .bz2 file; krill reads"),
    "compressed parquet": (lambda p: write_bytes(p / "a.parquet.gz", b"x"), "is a .parquet.gz file"),
    "no suffix": (lambda p: write_bytes(p / "text", b"x"), "has no suffix"),
    "empty folder": (lambda p: p, "has no file of a supported kind"),
    "folder named as a file": (lambda p: make_folder(p / "x.jsonl"), "x.jsonl: has no file"),
    "no match": (lambda p: p / "*.jsonl", "matches no file"),
    "parquet column": (lambda p: write_parquet(p / "a.parquet", body=TEXTS), "no column 'text'; it has body"),
    "numbers": (lambda p: write_parquet(p / "a.parquet", text=[1, 2]), "column text holds int64, not text"),
    "csv column": (lambda p: write_bytes(p / "a.csv", b"id,body\n1,x\n"), "no column 'text'; it has id, body"),
    "csv of no rows": (lambda p: write_bytes(p / "a.csv", b"\n\n"), "a.csv:1: the header row"),
    "csv header": (lambda p: write_bytes(p / "a.csv", b'id,"text\n1,x\n'), "a.csv:1: the header row"),
    "tsv.gz column": (
        lambda p: write_bytes(p / "a.tsv.gz", gzip.compress(b"id\tbody\n")), "no column 'text'; it has id, body"
    ),
    "no gz": (lambda p: write_bytes(p / "a.jsonl.gz", b'{"text": "x"}'), "is not compressed with gzip"),
    "no zst": (lambda p: write_bytes(p / "a.jsonl.zst", gzip.compress(b"x")), "is not compressed with zstd"),
    "truncated gz": (
        lambda p: write_bytes(p / "a.txt.gz", gzip.compress(b"x" * 99)[:12]), "cannot be read"
    ),
    "UTF-16": (lambda p: write_bytes(p / "a.jsonl", '{"text": "가"}'.encode("utf-16")), "is UTF-16LE, not UTF-8"),
    "UTF-16 in gz": (
        lambda p: write_bytes(p / "a.txt.gz", gzip.compress(b"\xfe\xff\xac\x00")), "is UTF-16BE, not UTF-8"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PROBLEMS)
def test_opening_reports_the_problem(tmp_path: Path, case: str) -> None:
    make_path, message = PROBLEMS[case]
    config = make_files(make_path(tmp_path))
    with pytest.raises(UsageError) as error:
        open_source(config)
    assert message in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_reports_all_problems_at_once(tmp_path: Path) -> None:
    good = write_json_lines(tmp_path / "good.jsonl", *RECORDS)
    invalid = [
        write_bytes(tmp_path / "empty.jsonl", b""),
        write_bytes(tmp_path / "a.md", b"x"),
        tmp_path / "missing.txt",
    ]
    with pytest.raises(UsageError) as error:
        open_source(make_files(good, *invalid))
    assert all(str(path) in str(error.value) for path in invalid)
    assert str(good) not in str(error.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every file")
def test_file_without_read_permission_raises(tmp_path: Path) -> None:
    path = write_bytes(tmp_path / "a.txt", b"x")
    path.chmod(0)
    with pytest.raises(UsageError, match="permission denied"):
        open_source(make_files(path))


def test_warns_about_files_of_other_kinds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "README.md").write_text("b")
    assert [entry.files for entry in resolve_paths(make_files(tmp_path))] == [[tmp_path / "a.txt"]]
    assert "ignoring 1 files of other kinds" in caplog.text


def test_entry_has_its_own_column(tmp_path: Path) -> None:
    body = write_parquet(tmp_path / "body.parquet", body=TEXTS)
    text = write_parquet(tmp_path / "text.parquet", text=TEXTS)
    open_source(make_files(text, {"path": str(body), "text_column": "body"}))
    with pytest.raises(UsageError, match=r"text\.parquet: no column 'body'"):
        open_source(make_files({"path": str(body)}, {"path": str(text)}, column="body"))


@pytest.mark.parametrize(
    ("value", "paths"),
    [
        (
            "[a.jsonl,{path: b.parquet, weight: 2, text_column: body}]",
            ["a.jsonl", {"path": "b.parquet", "weight": 2, "text_column": "body"}],
        ),
        (
            "[{path: 말뭉치/가.jsonl, limit: 3},my text/b c.csv.gz]",
            [{"path": "말뭉치/가.jsonl", "limit": 3}, "my text/b c.csv.gz"],
        ),
        ("[{path: it's (1)/*.jsonl}]", [{"path": "it's (1)/*.jsonl"}]),
    ],
)
def test_entries_with_settings_are_valid_overrides(value: str, paths: list[Any]) -> None:
    config = compose_config("train", ["data=files", quote_override(f"data.paths={value}")])
    container: Any = OmegaConf.to_container(config.data, resolve=True)
    assert FilesDataConfig(**container) == FilesDataConfig(**container | {"paths": paths})
