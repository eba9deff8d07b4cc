"""Bad input costs what is bad, and every message names file, line and what to do."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from krill.config.schema import Files, Hub, HubDataset
from krill.data.source import Source
from krill.data.sources import check, open_source
from krill.errors import KrillError, UsageError

GOOD = [{"text": f"document {index}"} for index in range(3)]
TEXTS = [record["text"] for record in GOOD]


def files(*paths: Path | str, column: str = "text") -> Files:
    return Files(
        name="test",
        source="files",
        paths=[str(path) for path in paths],
        text_column=column,
        min_chars=0,
        min_tokens=0,
        validation_fraction=0.0,
    )


def texts(source: Source) -> list[str]:
    return [document.text for document in source.documents()]


def json_lines(path: Path, *lines: bytes | dict[str, Any]) -> Path:
    path.write_bytes(
        b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    )
    return path


def parquet(path: Path, **columns: Any) -> Path:
    pyarrow.parquet.write_table(pa.table(columns), path)
    return path


# --- what is read ------------------------------------------------------------------------------------------


def test_every_format_gives_its_documents(tmp_path: Path) -> None:
    json_lines(tmp_path / "a.jsonl", *GOOD)
    json_lines(tmp_path / "b.json", *GOOD)
    (tmp_path / "c.json").write_text(json.dumps(GOOD, indent=2))
    parquet(tmp_path / "d.parquet", text=TEXTS, other=[1, 2, 3])
    parquet(tmp_path / "e.parquet", text=pa.array(TEXTS).dictionary_encode())
    (tmp_path / "f.txt").write_text("one\n\nfile")
    (tmp_path / "g.JSONL").write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD[0]).encode())  # BOM, no end of line
    source = open_source(files(tmp_path))
    assert texts(source) == TEXTS * 5 + ["one\n\nfile"] + TEXTS[:1]
    assert not source.skipped


def test_entries_are_files_folders_and_globs_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("글/둘.txt", "글/하나.txt", "글/.hidden.txt", "x/2.txt", "x/10.txt", "z[1].txt"):
        path = Path(name)
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    source = open_source(files("x/*.txt", "글", "z[1].txt"))
    found = [(document.source, document.text) for document in source.documents()]
    assert found == [
        ("*.txt", "x/10.txt"),
        ("*.txt", "x/2.txt"),
        ("글", "글/둘.txt"),
        ("글", "글/하나.txt"),
        ("z[1].txt", "z[1].txt"),
    ]


def test_documents_can_be_read_twice(tmp_path: Path) -> None:
    source = open_source(files(json_lines(tmp_path / "a.jsonl", *GOOD, b"{")))
    assert texts(source) == texts(source) == TEXTS
    assert source.skipped == {"invalid JSON": 1}


def test_sources_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.txt").write_text(folder)
    source = open_source(files(tmp_path / "a/x.txt", tmp_path / "b/x.txt", tmp_path / "b/x.txt"))
    assert len(set(source.names)) == 3


def test_other_kinds_of_files_in_a_folder_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "README.md").write_text("b")
    assert texts(open_source(files(tmp_path))) == ["a"]
    assert "1 files of other kinds are not read" in caplog.text


# --- the fingerprint ---------------------------------------------------------------------------------------


def test_fingerprint_is_the_content_not_the_place(tmp_path: Path) -> None:
    first = json_lines(tmp_path / "a.jsonl", *GOOD)
    (tmp_path / "elsewhere").mkdir()
    second = shutil.copy(first, tmp_path / "elsewhere/a.jsonl")
    before = open_source(files(first)).fingerprint()
    assert open_source(files(second)).fingerprint() == before
    json.dumps(before)
    json_lines(first, *GOOD, {"text": "more"})
    assert open_source(files(first)).fingerprint() != before
    assert open_source(files(second, column="body")).fingerprint() != before


# --- a bad record costs that record ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "\xff\xfe"}', "invalid UTF-8"),
        (b"\x00\x00\x00", "invalid JSON"),
        (b'{"text": "a\x00b"}', "invalid JSON"),
        (b'{"text": "cut', "invalid JSON"),
        (b"[" * 100_000, "invalid JSON"),
        (b'{"text": 5}', "'text' is not text but int"),
        (b'{"text": null}', "'text' is null"),
        (b'{"body": "x"}', "no 'text'"),
        (b'["text"]', "not a JSON object"),
    ],
)
def test_a_bad_line_is_skipped_counted_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, line: bytes, reason: str
) -> None:
    path = json_lines(tmp_path / "나쁜.jsonl", *GOOD[:1], line, b"", *GOOD[1:])
    source = open_source(files(path))
    assert texts(source) == TEXTS
    assert source.skipped == {reason: 1}
    assert f"{path}:2: {reason}" in caplog.text


def test_only_the_first_few_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = json_lines(tmp_path / "a.jsonl", *GOOD, *[b"{"] * 500, b'{"text": 1}')
    source = open_source(files(path))
    assert texts(source) == TEXTS
    assert source.skipped["invalid JSON"] == 500
    assert len(caplog.records) == 5  # three lines, one that says there are more, the other reason
    assert f"{path}:504: 'text' is not text" in caplog.text


def test_surrogates_in_json_reach_cleaning(tmp_path: Path) -> None:
    path = json_lines(tmp_path / "a.jsonl", b'{"text": "\\ud83d\\ude00 \\ud83d \\u0000"}')
    assert texts(open_source(files(path))) == ["😀 \ud83d \x00"]


def test_a_very_long_line(tmp_path: Path) -> None:
    path = json_lines(tmp_path / "a.jsonl", {"text": "가" * 5_000_000}, GOOD[0])
    assert [len(text) for text in texts(open_source(files(path)))] == [5_000_000, len(TEXTS[0])]


def test_null_and_broken_parquet_values_are_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"], pa.binary()).buffers())
    column = pa.chunked_array([pa.array(["a", None]), broken, pa.array(["b"])])
    path = parquet(tmp_path / "a.parquet", text=column)
    source = open_source(files(path))
    assert texts(source) == ["a", "b"]
    assert source.skipped == {"'text' is null": 1, "invalid UTF-8": 1}
    assert f"{path}: row 3: invalid UTF-8" in caplog.text


def test_a_text_file_of_other_encoding_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("첫 줄\n".encode() + "둘째".encode("cp949"))
    source = open_source(files(path))
    assert texts(source) == []
    assert f"{path}:2: invalid UTF-8" in caplog.text


# --- a bad file is an error --------------------------------------------------------------------------------


def truncated(path: Path) -> Path:
    parquet(path, text=TEXTS)
    path.write_bytes(path.read_bytes()[:-20])
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


BAD_FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda folder: folder / "없음.jsonl", "없음.jsonl: no such file"),
    "empty": (lambda folder: written(folder / "a.jsonl", b""), "a.jsonl: is empty"),
    "empty parquet": (lambda folder: written(folder / "a.parquet", b""), "a.parquet: is empty"),
    "no rows": (lambda folder: parquet(folder / "a.parquet", text=pa.array([], pa.string())), "holds no row"),
    "truncated parquet": (lambda folder: truncated(folder / "a.parquet"), "is no whole Parquet file"),
    "other suffix": (lambda folder: written(folder / "a.csv", b"x"), "is a .csv file; krill reads .jsonl"),
    "no suffix": (lambda folder: written(folder / "text", b"x"), "has no suffix"),
    "empty folder": (lambda folder: folder, "holds no file that krill reads"),
    "no match": (lambda folder: folder / "*.jsonl", "matches no file"),
    "parquet column": (
        lambda folder: parquet(folder / "a.parquet", body=TEXTS),
        "no column 'text'; it has body",
    ),
    "numbers": (
        lambda folder: parquet(folder / "a.parquet", text=[1, 2]),
        "column text holds int64, not text",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_check_finds_it_before_any_work(tmp_path: Path, case: str) -> None:
    make, message = BAD_FILES[case]
    with pytest.raises(UsageError) as error:
        check(files(make(tmp_path)))
    assert message in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_all_problems_are_named_at_once(tmp_path: Path) -> None:
    good = json_lines(tmp_path / "good.jsonl", *GOOD)
    bad = [
        written(tmp_path / "empty.jsonl", b""),
        written(tmp_path / "a.csv", b"x"),
        tmp_path / "missing.txt",
    ]
    with pytest.raises(UsageError) as error:
        check(files(good, *bad))
    assert all(str(path) in str(error.value) for path in bad)
    assert str(good) not in str(error.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", b"x")
    path.chmod(0)
    with pytest.raises(UsageError, match="may not be read"):
        check(files(path))


def test_a_column_that_no_line_has_is_an_error(tmp_path: Path) -> None:
    path = json_lines(tmp_path / "a.jsonl", {"body": "x", "id": 1}, {"body": "y"})
    with pytest.raises(UsageError, match=r"a\.jsonl: no column 'text'; it has body, id.*data\.text_column="):
        texts(open_source(files(path)))
    assert texts(open_source(files(path, column="body"))) == ["x", "y"]


def test_a_file_of_blank_lines_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no record"):
        texts(open_source(files(written(tmp_path / "a.jsonl", b"\n \n"))))


def test_a_broken_array_names_its_line(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", b'[\n{"text": "a"},\n{"text": }\n]')
    with pytest.raises(UsageError, match=r"a\.json:3: invalid JSON"):
        texts(open_source(files(path)))


def test_parquet_that_breaks_half_way_is_an_error(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", text=[f"{index}" * 50 for index in range(20_000)])
    content = bytearray(path.read_bytes())
    content[1000:60_000] = bytes(59_000)
    path.write_bytes(content)
    with pytest.raises(KrillError, match=r"a\.parquet: cannot be read after row"):
        texts(open_source(files(path)))


# --- the Hub -----------------------------------------------------------------------------------------------


@pytest.fixture
def cached_datasets(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


def hub(*datasets: HubDataset) -> Hub:
    return Hub(
        name="test", source="hub", datasets=list(datasets), min_chars=0, min_tokens=0, validation_fraction=0.0
    )


@pytest.mark.usefixtures("cached_datasets")
def test_a_folder_is_a_data_set_with_slices(tmp_path: Path) -> None:
    json_lines(tmp_path / "train.jsonl", *GOOD, {"text": None})
    path = str(tmp_path)
    source = open_source(hub(HubDataset(path=path), HubDataset(path=path, split="train[:2]")))
    assert texts(source) == TEXTS + TEXTS[:2]
    assert source.skipped == {"'text' is null": 1}
    before = json.dumps(source.fingerprint())
    json_lines(tmp_path / "train.jsonl", *GOOD)
    assert json.dumps(source.fingerprint()) != before


def test_a_data_set_of_the_hub_is_known_by_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    commits = iter(["c1", "c2"])
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *_, **__: f"/cache/snapshots/{next(commits)}"
    )
    before, after = (open_source(hub(HubDataset(path=path))).fingerprint() for path in ("user/a", "user/b"))
    assert before[0]["revision"] == "c1"
    assert after[0]["revision"] == "c2"


def test_a_data_set_that_cannot_be_had_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(KrillError, match=r"user/c, split train: .*no route to host.*data=files"):
        texts(open_source(hub(HubDataset(path="user/c"))))


@pytest.mark.usefixtures("cached_datasets")
def test_a_data_set_without_the_column_or_split(tmp_path: Path) -> None:
    json_lines(tmp_path / "train.jsonl", {"body": "x"})
    with pytest.raises(UsageError, match="no column 'text'; it has body"):
        texts(open_source(hub(HubDataset(path=str(tmp_path)))))
    with pytest.raises(UsageError, match="split test"):
        texts(open_source(hub(HubDataset(path=str(tmp_path), split="test"))))
