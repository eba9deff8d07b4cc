"""krill-tokenizer trains and extends tokenizers that krill-preprocess can use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from recipes import load_english, make_korean

from krill.cli import app, preprocess, tokenizer
from krill.data.store import Store
from krill.sources.files import FileSource
from krill.tokenizer.artifact import load_tokenizer

pytestmark = pytest.mark.usefixtures("in_empty_folder")


@pytest.fixture
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, texts in (("en", load_english()[:60]), ("ko", make_korean())):
        lines = (json.dumps({"text": text}, ensure_ascii=False) for text in texts)
        Path(f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")


def run_tokenizer(*overrides: str) -> int:
    return app.main("tokenizer", tokenizer.run_task, list(overrides))


def read_printed_folder(capsys: pytest.CaptureFixture[str]) -> Path:
    """Returns the folder that the command printed last."""
    return Path(capsys.readouterr().out.splitlines()[-1])


def test_an_option_is_trained_once_and_reused(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = (
        "tokenizer=qwen_like",
        "tokenizer.vocab_size=2048",
        "data=files",
        "data.paths=[en.jsonl,ko.jsonl]",
    )
    assert run_tokenizer(*overrides) == 0
    folder = read_printed_folder(capsys)
    assert folder.name.startswith("qwen_like-")
    assert load_tokenizer(folder).vocab_size == 2048
    record = json.loads((folder / "record.json").read_text())
    assert record["text"]["documents"] > 100
    assert record["recipe"]["pattern"] == "qwen2"
    modified = (folder / "tokenizer.json").stat().st_mtime_ns
    assert run_tokenizer(*overrides) == 0
    assert read_printed_folder(capsys) == folder
    assert (folder / "tokenizer.json").stat().st_mtime_ns == modified


def test_the_order_of_files_does_not_change_the_tokenizer(capsys: pytest.CaptureFixture[str]) -> None:
    small = ("tokenizer.vocab_size=600", "data=files")
    folders = []
    for paths in ("[en.jsonl,ko.jsonl]", "[ko.jsonl,en.jsonl]", "*.jsonl"):
        assert run_tokenizer(*small, f"data.paths={paths}") == 0
        folders.append(read_printed_folder(capsys))
    assert len({(folder / "tokenizer.json").read_bytes() for folder in folders}) == 1
    assert folders[0] == folders[1] != folders[2]
    assert folders[0].name.startswith("bpe_600-")


def test_an_extension_can_encode_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run_tokenizer("tokenizer.vocab_size=600", "data=files", "data.paths=[en.jsonl]", "output=english")
        == 0
    )
    capsys.readouterr()
    paths = ("english", "./english", "~/english", str(Path("english").absolute()))
    folders = set()
    for path in paths:
        overrides = [
            f"tokenizer.base={path}",
            "tokenizer.vocab_size=800",
            "tokenizer.special_tokens=['<|image|>']",
        ]
        assert run_tokenizer("tokenizer=extended", *overrides, "data=files", "data.paths=[ko.jsonl]") == 0
        folders.add(read_printed_folder(capsys))
    (folder,) = folders
    larger = load_tokenizer(folder)
    assert larger.vocab_size == 800
    assert larger.backend.token_to_id("<|image|>") == 799
    overrides = [f"tokenizer.path={folder}", "data=files", "data.paths=[ko.jsonl,en.jsonl]"]
    assert app.main("preprocess", preprocess.run_task, ["tokenizer=pretrained", *overrides]) == 0
    store = Store.open(read_printed_folder(capsys))
    assert store.manifest["tokenizer"]["signature"] == larger.signature
    assert store.manifest["tokenizer"]["vocab_size"] == 800


def test_preprocess_trains_an_extension(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run_tokenizer("tokenizer.vocab_size=600", "data=files", "data.paths=[en.jsonl]", "output=english")
        == 0
    )
    capsys.readouterr()
    overrides = ["tokenizer=extended", "tokenizer.base=english", "tokenizer.vocab_size=800"]
    assert (
        app.main("preprocess", preprocess.run_task, [*overrides, "data=files", "data.paths=[ko.jsonl]"]) == 0
    )
    assert Store.open(read_printed_folder(capsys)).manifest["tokenizer"]["vocab_size"] == 800


@pytest.mark.parametrize(
    ("overrides", "code", "message"),
    [
        (["tokenizer.pattern=gpt5"], 2, "tokenizer.pattern"),
        (["tokenizer.trainer=rust"], 2, "tokenizer.trainer"),
        (["tokenizer=extended"], 2, "tokenizer.base"),
        (
            ["tokenizer=extended", "tokenizer.base=./none", "tokenizer.vocab_size=9000"],
            2,
            "tokenizer.base=./none",
        ),
        (
            ["tokenizer=extended", "tokenizer.base=~/none", "tokenizer.vocab_size=9000"],
            2,
            "tokenizer.base=~/none",
        ),
        (
            ["tokenizer.vocab_size=30000", "data=files", "data.paths=[ko.jsonl]"],
            1,
            "set tokenizer.vocab_size=",
        ),
        (["tokenizer.vocab_size=200"], 2, "tokenizer.vocab_size"),
        (["tokenizer.special_tokens=[tool]"], 2, "use <|tool|>"),
        (["tokenizer.special_tokens=[]"], 2, "tokenizer.chat_template=chatml needs"),
    ],
)
def test_errors_name_the_key(
    overrides: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tokenizer(*overrides) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not Path("outputs/tokenizers").exists() or not [
        *Path("outputs/tokenizers").glob("*/tokenizer.json")
    ]


@pytest.mark.parametrize(
    "overrides",
    [
        ["tokenizer.special_tokens=[tool]"],
        ["tokenizer=extended", "tokenizer.base=base", "tokenizer.vocab_size=400"],
        [
            "tokenizer=extended",
            "tokenizer.base=base",
            "tokenizer.vocab_size=700",
            "tokenizer.chat_template=llama3",
        ],
    ],
)
def test_an_impossible_recipe_is_rejected_before_any_text_is_read(
    overrides: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run_tokenizer("tokenizer.vocab_size=600", "data=files", "data.paths=[en.jsonl]", "output=base") == 0
    )

    def fail(*_: object) -> None:
        raise AssertionError("the text was read")

    monkeypatch.setattr(FileSource, "read", fail)
    for more in ([], ["dry_run=true"]):
        assert run_tokenizer(*overrides, "data=files", "data.paths=[en.jsonl]", *more) == 2
        assert "tokenizer" in capsys.readouterr().err


def test_the_error_for_an_unreachable_hub_names_the_base(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tokenizer("tokenizer=extended", "tokenizer.base=no/such", "tokenizer.vocab_size=9000") == 1
    assert "tokenizer.base=no/such" in capsys.readouterr().err
