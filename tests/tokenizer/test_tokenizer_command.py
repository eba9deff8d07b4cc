"""Tokenizers by command: trained, extended, and ready to prepare tokens with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from recipes import english, korean

from krill.cli import app, preprocess, tokenizer
from krill.data.store import Store
from krill.sources.files import FileSource
from krill.tokenizer.artifact import load_tokenizer

pytestmark = pytest.mark.usefixtures("in_empty_folder")


@pytest.fixture
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, texts in (("en", english()[:60]), ("ko", korean())):
        lines = (json.dumps({"text": text}, ensure_ascii=False) for text in texts)
        Path(f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")


def run_tokenizer(*words: str) -> int:
    return app.main("tokenizer", tokenizer.run_task, list(words))


def read_printed_folder(capsys: pytest.CaptureFixture[str]) -> Path:
    """The folder that the command named last."""
    return Path(capsys.readouterr().out.splitlines()[-1])


def test_an_option_is_trained_and_found_again(capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "tokenizer=qwen_like",
        "tokenizer.vocab_size=2048",
        "data=files",
        "data.paths=[en.jsonl,ko.jsonl]",
    )
    assert run_tokenizer(*words) == 0
    folder = read_printed_folder(capsys)
    assert folder.name.startswith("qwen_like-")
    assert load_tokenizer(folder).vocab_size == 2048
    record = json.loads((folder / "record.json").read_text())
    assert record["text"]["documents"] > 100
    assert record["recipe"]["pattern"] == "qwen2"
    written = (folder / "tokenizer.json").stat().st_mtime_ns
    assert run_tokenizer(*words) == 0
    assert read_printed_folder(capsys) == folder
    assert (folder / "tokenizer.json").stat().st_mtime_ns == written


def test_other_orders_of_files_give_the_same_tokenizer(capsys: pytest.CaptureFixture[str]) -> None:
    small = ("tokenizer.vocab_size=1000", "data=files")
    contents = []
    for paths in ("[en.jsonl,ko.jsonl]", "[ko.jsonl,en.jsonl]", "*.jsonl"):
        assert run_tokenizer(*small, f"data.paths={paths}") == 0
        contents.append((read_printed_folder(capsys) / "tokenizer.json").read_bytes())
    assert len({*contents}) == 1


def test_extended_and_ready_for_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run_tokenizer("tokenizer.vocab_size=1000", "data=files", "data.paths=[en.jsonl]", "output=english")
        == 0
    )
    capsys.readouterr()
    places = ("english", "./english", "~/english", str(Path("english").absolute()))
    folders = set()
    for place in places:
        words = [
            f"tokenizer.base={place}",
            "tokenizer.vocab_size=1500",
            "tokenizer.special_tokens=['<|image|>']",
        ]
        assert run_tokenizer("tokenizer=extended", *words, "data=files", "data.paths=[ko.jsonl]") == 0
        folders.add(read_printed_folder(capsys))
    (folder,) = folders
    larger = load_tokenizer(folder)
    assert larger.vocab_size == 1500
    assert larger.backend.token_to_id("<|image|>") == 1499
    words = [f"tokenizer.path={folder}", "data=files", "data.paths=[ko.jsonl,en.jsonl]"]
    assert app.main("preprocess", preprocess.run_task, ["tokenizer=pretrained", *words]) == 0
    store = Store.open(read_printed_folder(capsys))
    assert store.manifest["tokenizer"]["signature"] == larger.signature
    assert store.manifest["tokenizer"]["vocab_size"] == 1500


def test_tokens_of_an_extension_are_prepared_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run_tokenizer("tokenizer.vocab_size=1000", "data=files", "data.paths=[en.jsonl]", "output=english")
        == 0
    )
    capsys.readouterr()
    words = ["tokenizer=extended", "tokenizer.base=english", "tokenizer.vocab_size=1200"]
    assert app.main("preprocess", preprocess.run_task, [*words, "data=files", "data.paths=[ko.jsonl]"]) == 0
    assert Store.open(read_printed_folder(capsys)).manifest["tokenizer"]["vocab_size"] == 1200


@pytest.mark.parametrize(
    ("words", "code", "message"),
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
        (["tokenizer.special_tokens=[tool]"], 2, "write <|tool|>"),
        (["tokenizer.special_tokens=[]"], 2, "tokenizer.chat_template=chatml needs"),
    ],
)
def test_mistakes_name_the_key(
    words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tokenizer(*words) == code
    told = capsys.readouterr()
    assert message in told.err
    assert "Traceback" not in told.err
    assert not Path("outputs/tokenizers").exists() or not [
        *Path("outputs/tokenizers").glob("*/tokenizer.json")
    ]


@pytest.mark.parametrize(
    "words",
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
def test_a_recipe_that_cannot_be_followed_is_told_before_any_text_is_read(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run_tokenizer("tokenizer.vocab_size=600", "data=files", "data.paths=[en.jsonl]", "output=base") == 0
    )

    def read(*unused: object) -> None:
        raise AssertionError("read")

    monkeypatch.setattr(FileSource, "read", read)
    for more in ([], ["dry_run=true"]):
        assert run_tokenizer(*words, "data=files", "data.paths=[en.jsonl]", *more) == 2
        assert "tokenizer" in capsys.readouterr().err


def test_a_base_on_the_hub_that_cannot_be_reached_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tokenizer("tokenizer=extended", "tokenizer.base=no/such", "tokenizer.vocab_size=9000") == 1
    assert "tokenizer.base=no/such" in capsys.readouterr().err
