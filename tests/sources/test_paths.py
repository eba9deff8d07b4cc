"""What is wrong with the files of data.paths is said before any work, everything at once."""

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


def cut(path: Path) -> Path:
    write_parquet(path, text=TEXTS)
    return write_bytes(path, path.read_bytes()[:-20])


def folder(path: Path) -> Path:
    path.mkdir()
    return path


Make = Callable[[Path], Path]
BAD: dict[str, tuple[Make, str]] = {
    "missing": (lambda here: here / "없음.jsonl", "없음.jsonl: no such file"),
    "empty": (lambda here: write_bytes(here / "a.jsonl", b""), "a.jsonl: is empty"),
    "empty gz": (lambda here: write_bytes(here / "a.txt.gz", gzip.compress(b"")), "a.txt.gz: is empty"),
    "empty zst": (lambda here: write_bytes(here / "a.jsonl.zst", compress_zstd(b"")), "a.jsonl.zst: is empty"),
    "empty parquet": (lambda here: write_bytes(here / "a.parquet", b""), "a.parquet: is empty"),
    "no rows": (lambda here: write_parquet(here / "a.parquet", text=pa.array([], pa.string())), "holds no row"),
    "cut parquet": (lambda here: cut(here / "a.parquet"), "is no whole Parquet file"),
    "other suffix": (lambda here: write_bytes(here / "a.md", b"x"), "is a .md file; krill reads .jsonl"),
    "other compression": (lambda here: write_bytes(here / "a.jsonl.bz2", b"x"), "is a .bz2 file; krill reads"),
    "compressed parquet": (lambda here: write_bytes(here / "a.parquet.gz", b"x"), "is a .parquet.gz file"),
    "no suffix": (lambda here: write_bytes(here / "text", b"x"), "has no suffix"),
    "empty folder": (lambda here: here, "holds no file that krill reads"),
    "folder named as a file": (lambda here: folder(here / "x.jsonl"), "x.jsonl: holds no file"),
    "no match": (lambda here: here / "*.jsonl", "matches no file"),
    "parquet column": (lambda here: write_parquet(here / "a.parquet", body=TEXTS), "no column 'text'; it has body"),
    "numbers": (lambda here: write_parquet(here / "a.parquet", text=[1, 2]), "column text holds int64, not text"),
    "csv column": (lambda here: write_bytes(here / "a.csv", b"id,body\n1,x\n"), "no column 'text'; it has id, body"),
    "csv of no rows": (lambda here: write_bytes(here / "a.csv", b"\n\n"), "a.csv:1: its first row"),
    "csv header": (lambda here: write_bytes(here / "a.csv", b'id,"text\n1,x\n'), "a.csv:1: its first row"),
    "tsv.gz column": (
        lambda here: write_bytes(here / "a.tsv.gz", gzip.compress(b"id\tbody\n")), "no column 'text'; it has id, body"
    ),
    "no gz": (lambda here: write_bytes(here / "a.jsonl.gz", b'{"text": "x"}'), "is not compressed with gzip"),
    "no zst": (lambda here: write_bytes(here / "a.jsonl.zst", gzip.compress(b"x")), "is not compressed with zstd"),
    "gz that is cut at once": (
        lambda here: write_bytes(here / "a.txt.gz", gzip.compress(b"x" * 99)[:12]), "cannot be read"
    ),
    "UTF-16": (lambda here: write_bytes(here / "a.jsonl", '{"text": "가"}'.encode("utf-16")), "is UTF-16LE, not UTF-8"),
    "UTF-16 in gz": (
        lambda here: write_bytes(here / "a.txt.gz", gzip.compress(b"\xfe\xff\xac\x00")), "is UTF-16BE, not UTF-8"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_check_finds_it_before_any_work(tmp_path: Path, case: str) -> None:
    make, message = BAD[case]
    config = make_files(make(tmp_path))
    with pytest.raises(UsageError) as error:
        open_source(config)
    assert message in str(error.value)
    assert str(tmp_path) in str(error.value)
    with pytest.raises(UsageError):
        open_source(config)


def test_all_problems_are_named_at_once(tmp_path: Path) -> None:
    good = write_json_lines(tmp_path / "good.jsonl", *RECORDS)
    bad = [
        write_bytes(tmp_path / "empty.jsonl", b""),
        write_bytes(tmp_path / "a.md", b"x"),
        tmp_path / "missing.txt",
    ]
    with pytest.raises(UsageError) as error:
        open_source(make_files(good, *bad))
    assert all(str(path) in str(error.value) for path in bad)
    assert str(good) not in str(error.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = write_bytes(tmp_path / "a.txt", b"x")
    path.chmod(0)
    with pytest.raises(UsageError, match="may not be read"):
        open_source(make_files(path))


def test_other_kinds_of_files_in_a_folder_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "README.md").write_text("b")
    assert [entry.files for entry in resolve_paths(make_files(tmp_path))] == [[tmp_path / "a.txt"]]
    assert "1 files of other kinds are not read" in caplog.text


def test_an_entry_has_its_own_column(tmp_path: Path) -> None:
    body = write_parquet(tmp_path / "body.parquet", body=TEXTS)
    text = write_parquet(tmp_path / "text.parquet", text=TEXTS)
    open_source(make_files(text, {"path": str(body), "text_column": "body"}))
    with pytest.raises(UsageError, match=r"text\.parquet: no column 'body'"):
        open_source(make_files({"path": str(body)}, {"path": str(text)}, column="body"))


@pytest.mark.parametrize(
    ("typed", "paths"),
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
def test_entries_with_settings_can_be_typed(typed: str, paths: list[Any]) -> None:
    config = compose_config("train", ["data=files", quote_override(f"data.paths={typed}")])
    given: Any = OmegaConf.to_container(config.data, resolve=True)
    assert FilesDataConfig(**given) == FilesDataConfig(**given | {"paths": paths})
