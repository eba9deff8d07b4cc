"""Tests of data.paths: all problems with its files are reported at once, before any work."""

from __future__ import annotations

import errno
import glob
import gzip
import json
import os
import pickle
import re
import shutil
import subprocess
import tarfile
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from omegaconf import OmegaConf
from source_files import (
    RECORDS,
    TEXTS,
    compress_zstd,
    make_files,
    read_texts,
    write_bytes,
    write_json_lines,
    write_parquet,
)

from krill.cli.compose import compose_config
from krill.config.overrides import quote_override
from krill.config.schema import FilesDataConfig, TrainConfig
from krill.config.validation import validate_config
from krill.errors import UsageError
from krill.sources.encodings import detect_encoding
from krill.sources.paths import resolve_paths
from krill.sources.registry import open_source


def write_truncated_parquet(path: Path) -> Path:
    write_parquet(path, text=TEXTS)
    return write_bytes(path, path.read_bytes()[:-20])


def write_two_columns(path: Path) -> Path:
    columns = [pa.array(TEXTS)] * 2
    pyarrow.parquet.write_table(pa.table(columns, names=["text", "text"]), path)
    return path


def make_link(path: Path, target: str) -> Path:
    path.symlink_to(target)
    return path


def write_tar(path: Path) -> Path:
    member = write_json_lines(path.with_name("member"), *RECORDS)
    with tarfile.open(path, "w") as file:
        file.add(member)
    return path


def make_pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 1234567\n"
LONG_WINDOW = b"\x28\xb5\x2f\xfd\x00\xa8\x01\x00\x00"
"""A zstd frame with a window of 2 GiB and an empty block."""


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
    "link to nothing": (lambda p: make_link(p / "a.jsonl", "/none/b"), "is a link to nothing (/none/b)"),
    "link to itself": (lambda p: make_link(p / "a.jsonl", "a.jsonl"), "is a link to nothing (a.jsonl)"),
    "link to nothing in a folder": (lambda p: make_link(p / "more", "/none").parent, "/more: is a link to nothing"),
    "link to nothing of a glob": (lambda p: make_link(p / "a.jsonl", "x").parent / "*.jsonl", "link to nothing"),
    "pipe": (lambda p: make_pipe(p / "a.jsonl"), "is not a regular file"),
    "pipe in a folder": (lambda p: make_pipe(p / "a.txt").parent, "is not a regular file"),
    "two columns": (lambda p: write_two_columns(p / "a.parquet"), "has 2 columns named 'text'"),
    "two columns of csv": (lambda p: write_bytes(p / "a.csv", b"text,id,text\na,1,b\n"), "has 2 columns named"),
    "truncated parquet": (lambda p: write_truncated_parquet(p / "a.parquet"), "is not a complete Parquet file"),
    "other suffix": (lambda p: write_bytes(p / "a.md", b"x"), "is a .md file; krill reads .jsonl"),
    "other compression": (lambda p: write_bytes(p / "a.jsonl.bz2", b"x"), "is a .bz2 file; krill reads"),
    "compressed parquet": (lambda p: write_bytes(p / "a.parquet.gz", b"x"), "is a .parquet.gz file"),
    "no suffix": (lambda p: write_bytes(p / "text", b"x"), "has no suffix"),
    "empty folder": (lambda p: p, "has no file of a supported kind"),
    "folder named as a file": (lambda p: make_folder(p / "x.jsonl"), "x.jsonl: has no file"),
    "no match": (lambda p: p / "*.jsonl", "matches no file"),
    "only folders below **": (lambda p: make_folder(p / "x").parent / "**", "**: matches no file"),
    "parquet column": (lambda p: write_parquet(p / "a.parquet", body=TEXTS), "no column 'text'; it has body"),
    "numbers": (lambda p: write_parquet(p / "a.parquet", text=[1, 2]), "column text holds int64, not text"),
    "csv column": (lambda p: write_bytes(p / "a.csv", b"id,body\n1,x\n"), "no column 'text'; it has id, body"),
    "csv of no rows": (lambda p: write_bytes(p / "a.csv", b"\n\n"), "a.csv:1: the header row"),
    "csv header": (lambda p: write_bytes(p / "a.csv", b'\nid,"text\n1,x\n'), "a.csv:2: the header row"),
    "tsv.gz column": (
        lambda p: write_bytes(p / "a.tsv.gz", gzip.compress(b"id\tbody\n")), "no column 'text'; it has id, body"
    ),
    "no gz": (lambda p: write_bytes(p / "a.jsonl.gz", b'{"text": "x"}'), "is not compressed with gzip"),
    "no zst": (lambda p: write_bytes(p / "a.jsonl.zst", gzip.compress(b"x")), "is not compressed with zstd"),
    "truncated gz": (
        lambda p: write_bytes(p / "a.txt.gz", gzip.compress(b"x" * 99)[:12]), "cannot be read"
    ),
    "long window": (
        lambda p: write_bytes(p / "a.jsonl.zst", LONG_WINDOW), "zstd -dc --long=31"
    ),
    **{
        f"Git LFS {name}": (
            lambda p, name=name: write_bytes(p / name, LFS_POINTER), f"{name}: is a Git LFS pointer, not the file "
            "itself; download it: git lfs pull"
        )
        for name in ("a.txt", "a.jsonl", "a.csv", "a.parquet", "a.jsonl.gz", "a.txt.zst")
    },
    "git-annex": (lambda p: write_bytes(p / "a.txt", b"/annex/objects/SHA256E-s9--0.txt\n"), "git annex get"),
    "gzip without its suffix": (
        lambda p: write_bytes(p / "a.jsonl", gzip.compress(b"x")), "is compressed with gzip; rename it to a.jsonl.gz"
    ),
    "zstd without its suffix": (lambda p: write_bytes(p / "a.csv", compress_zstd(b"x")), "rename it to a.csv.zst"),
    "gzip twice": (
        lambda p: write_bytes(p / "a.txt.gz", gzip.compress(gzip.compress(b"x"))), "gzip -dc"
    ),
    "parquet": (
        lambda p: write_parquet(p / "a.jsonl", text=TEXTS), "is a Parquet file; rename it to a.parquet"
    ),
    "tar": (lambda p: write_tar(p / "a.jsonl"), "is a tar archive; extract it: tar -xf "),
    "tar.gz": (lambda p: write_bytes(p / "a.txt.gz", gzip.compress(write_tar(p / "b").read_bytes())), "tar archive"),
    "stream of Arrow": (lambda p: write_bytes(p / "a.txt", b"\xff" * 4 + bytes(99)), "is a stream of Arrow"),
    "pickle": (lambda p: write_bytes(p / "a.txt", pickle.dumps(RECORDS)), "is a Python pickle"),
    "numpy": (lambda p: write_bytes(p / "a.csv", b"\x93NUMPY\x01\0"), "is a NumPy array"),
    "lz4": (lambda p: write_bytes(p / "a.txt", b"\x04\x22\x4d\x18abc"), "is compressed with lz4"),
    "hwp": (lambda p: write_bytes(p / "a.txt", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"), "is an old office document"),
    "link to nothing below **": (
        lambda p: make_link(p / "ko", "/none").parent / "**/*.jsonl", "/ko: is a link to nothing (/none)"
    ),
    "link to nothing before a pattern": (
        lambda p: make_link(p / "ko", "/none").parent / "*/*.jsonl", "/ko: is a link to nothing (/none)"
    ),
    "zip": (lambda p: write_bytes(p / "a.csv", b"PK\x03\x04\x14\0"), "is a ZIP archive"),
    "zero bytes": (lambda p: write_bytes(p / "a.jsonl", bytes(5000)), "is filled with zero bytes"),
    "other encoding": (
        lambda p: write_bytes(p / "a.txt", "하나\n\n".encode() + "été".encode("latin-1")),
        "a.txt: is not UTF-8 (line 3); find its encoding",
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


def test_empty_path_raises() -> None:
    with pytest.raises(UsageError, match=r"'' is not a path .* data\.paths=\[\.\]"):
        open_source(make_files(""))


def test_linked_folders_are_read_once(tmp_path: Path) -> None:
    for name in ("in/own/a.txt", "disk/ko/b.txt", "disk/ko/deep/c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    make_link(tmp_path / "in/ko", "../disk/ko")
    make_link(tmp_path / "in/again", "own")
    make_link(tmp_path / "disk/ko/up", "../..")
    make_link(tmp_path / "disk/ko/.hidden", "..")
    (entry,) = resolve_paths(make_files(tmp_path / "in"))
    (by_glob,) = resolve_paths(make_files(tmp_path / "in/**/*.txt"))
    assert {path.resolve() for path in by_glob.files} == {path.resolve() for path in entry.files}
    assert len(by_glob.files) == 3
    assert [str(path.relative_to(tmp_path / "in")) for path in entry.files] == [
        "ko/b.txt", "ko/deep/c.txt", "own/a.txt",
    ]  # fmt: skip


def test_folder_that_cannot_be_listed_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/x.txt", "b/x.txt", "lost+found/x.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("x")
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if os.path.basename(path) in ("b", "lost+found"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UsageError, match=r"/b: cannot be listed \(Permission denied\)") as error:
        open_source(make_files(tmp_path))
    assert "lost+found" not in str(error.value)
    monkeypatch.undo()
    monkeypatch.setattr(os, "access", lambda path, mode: os.path.basename(path) != "b")
    with pytest.raises(UsageError, match=r"/b: cannot be listed \(Permission denied\)"):
        open_source(make_files(tmp_path / "*/*.txt"))


def test_empty_parquet_files_of_a_folder_are_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_parquet(tmp_path / "0.parquet", text=pa.array([], pa.string()))
    path = write_parquet(tmp_path / "1.parquet", text=TEXTS)
    assert [entry.files for entry in resolve_paths(make_files(tmp_path))] == [[path]]
    assert "ignoring 1 Parquet files without rows" in caplog.text


def test_message_is_short_however_many_files_are_unusable(tmp_path: Path) -> None:
    for index in range(100):
        (tmp_path / f"{index}.txt").touch()
    with pytest.raises(UsageError) as error:
        open_source(make_files(tmp_path))
    lines = str(error.value).split("\n")
    assert len(lines) <= 20
    assert lines[-1] == "  and 85 more"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("header.csv", ",".join(["word"] * 9000).encode()),
        ("long.csv", b"x" * 60_000),
        ("keys.jsonl", json.dumps({str(index): {} for index in range(5000)}).encode()),
    ],
)
def test_message_is_short_however_many_columns_there_are(tmp_path: Path, name: str, content: bytes) -> None:
    with pytest.raises(UsageError, match=r"no column 'text'; it has .*data\.text_column=") as error:
        read_texts(open_source(make_files(write_bytes(tmp_path / name, content))))
    assert len(str(error.value)) < 800


def test_warnings_come_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "README.md").write_text("b")
    for _ in range(2):
        resolve_paths(make_files(tmp_path))
    assert len(caplog.records) == 1


def test_syllables_that_korean_is_not_written_in_are_no_sign_of_cp949() -> None:
    sample = b"\xb0A\xb5C\xc0B " * 100
    assert re.fullmatch("[가-힣 ]+", sample.decode("cp949"))
    assert detect_encoding(sample) is None


KOREAN = "오늘은 비가 와서 집에서 책을 읽었다. 「가나다」 3·1 운동(三一運動)\n" * 20
ENGLISH = "It rained, so we read at home.\n" * 20


@pytest.mark.parametrize(
    ("encoding", "codec"),
    [
        ("UTF-16LE", "utf-16-le"), ("UTF-16BE", "utf-16-be"), ("UTF-32LE", "utf-32-le"),
        ("UTF-32BE", "utf-32-be"), ("CP949", "cp949"), ("UTF-16LE", "utf-16"), ("UTF-32LE", "utf-32"),
        ("ISO-2022-KR", "iso2022_kr"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "txt", "txt.gz", "tsv.zst"])
def test_names_the_encoding_and_the_command_that_converts_it(
    tmp_path: Path, encoding: str, codec: str, kind: str
) -> None:
    lines = [KOREAN, ENGLISH, KOREAN]
    match kind:
        case "jsonl":
            text = "".join(json.dumps({"text": line}, ensure_ascii=False) + "\n" for line in lines)
        case "json":
            text = json.dumps([{"text": line} for line in lines], ensure_ascii=False, indent=1)
        case _:
            text = f"text\n{KOREAN}{ENGLISH}"
    compress = {"gz": gzip.compress, "zst": compress_zstd}.get(kind.rpartition(".")[2], bytes)
    path = write_bytes(tmp_path / f"두 번째 글.{kind}", compress(text.encode(codec)))
    with pytest.raises(UsageError, match=f"is {encoding}.*, not UTF-8; convert it: ") as error:
        open_source(make_files(path))
    command = str(error.value).partition("convert it: ")[2]
    if shutil.which("iconv") and not kind.endswith("zst"):
        subprocess.run(command, shell=True, check=True)
        (converted,) = set(tmp_path.iterdir()) - {path}
        assert [*open_source(make_files(converted)).list_parts()]
        expected = text if kind != "txt.gz" else None
        assert expected is None or converted.read_text(encoding="utf-8-sig") == expected


def test_names_in_another_unicode_form(tmp_path: Path) -> None:
    folder = tmp_path / unicodedata.normalize("NFD", "말뭉치")
    folder.mkdir()
    write_json_lines(
        folder / unicodedata.normalize("NFD", "가.jsonl"), {unicodedata.normalize("NFD", "본문"): "a"}
    )
    for entry in ("말뭉치/가.jsonl", "말뭉치", "말뭉치/*.jsonl"):
        with pytest.raises(UsageError, match="its column '본문' is written in another Unicode form"):
            read_texts(open_source(make_files(tmp_path / entry, column="본문")))


@pytest.mark.parametrize("text", ["short\0 text in Latin, \xe9 among it", "a \0 only"])
def test_a_zero_byte_in_ascii_is_not_taken_for_utf_16(text: str) -> None:
    assert detect_encoding((text * 9).encode("latin-1")) is None


def test_similar_bytes_are_not_taken_for_korean() -> None:
    others = {
        "gbk": "今天下雨，所以我们在家看书。这是一个很好的故事，大家都喜欢。" * 9,
        "euc_jp": "今日は雨が降ったので、家で本を読みました。とても面白い話でした。" * 9,
        "shift_jis": "今日は雨が降ったので、家で本を読みました。とても面白い話でした。" * 9,
        "latin-1": "Il a plu toute la journée, alors nous avons été à la maison. Où êtes-vous?" * 9,
    }
    assert {codec: detect_encoding(text.encode(codec)) for codec, text in others.items()} == dict.fromkeys(
        others
    )
    assert detect_encoding("今日は雨が降った。\n本を読みました。\n".encode("utf-16-le")) == "UTF-16LE"
    for text in (KOREAN, ENGLISH, "a\0" + ENGLISH, "\0\0\0"):
        assert detect_encoding(text.encode()) is None


def test_korean_lines_among_others_are_single_damaged_records(tmp_path: Path) -> None:
    line = json.dumps({"text": "한국어"}, ensure_ascii=False).encode("cp949")
    path = write_json_lines(tmp_path / "a.jsonl", *RECORDS * 4, line)
    assert read_texts(open_source(make_files(path))) == TEXTS * 4


def test_error_of_an_entry_with_settings_names_its_key() -> None:
    composed = compose_config("train", ["data=files", "data.paths=[a.jsonl,{path: b.jsonl, weight: 0}]"])
    with pytest.raises(UsageError) as error:
        validate_config(TrainConfig, composed)
    assert str(error.value) == "data.paths.1.weight=0: input should be greater than 0"


def test_two_stars_within_a_name_are_one(tmp_path: Path) -> None:
    path = write_json_lines(make_folder(tmp_path / "ko") / "a.jsonl", *RECORDS)
    (entry,) = resolve_paths(make_files(tmp_path / "k**"))
    assert entry.files == [path]


@pytest.mark.parametrize(
    "pattern", ["**/*.txt", "**", "x/**/*.txt", "x/**", "*/**/1.txt", "**/y/**/*.txt", "./x/**"]
)
def test_glob_matches_what_the_glob_module_matches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (
        "1.txt",
        "x/1.txt",
        "x-y/1.txt",
        "x/y/1.txt",
        "x/y/[z]/1.txt",
        "x/.hidden/1.txt",
        "x/.1.txt",
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("x")
    expected = [match for match in sorted(glob.glob(pattern, recursive=True)) if os.path.isfile(match)]
    for start in ("", f"{tmp_path}/"):
        (entry,) = resolve_paths(make_files(start + pattern))
        assert entry.files == [Path(start + match) for match in expected]
