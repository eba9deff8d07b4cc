"""krill-inspect shows a store by folder or by what would make it, reads and never makes; mistakes name the fix."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from console import complaints, empty, run
from stores import ENGLISH, KOREAN, make_tokenizer, write_store
from test_import_light import HEAVY, loaded

from krill.cli import inspect

DOCUMENTS = [("책", KOREAN), ("web", ENGLISH), ("web", "ㅋㅋㅋ 뷁"), ("책", KOREAN * 9)]
SHORT = "sequence_len=64"

Told = tuple[int, str, str]
"""Exit code, standard output, standard error."""
Inspect = Callable[..., Told]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a store in tokens/, whose tokenizer is where krill puts tokenizers."""
    tokenizer = make_tokenizer(tmp_path / "outputs" / "tokenizers" / "test-tttttttt")
    write_store(tmp_path / "tokens", tokenizer, DOCUMENTS, [("web", ENGLISH * 2)])
    monkeypatch.chdir(tmp_path)
    for name in ("KRILL_OUTPUTS", "KRILL_CONF", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def told(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Inspect:
    """told("tokens", "rows=0"): what krill-inspect says in `here`."""

    def say(*words: str) -> Told:
        monkeypatch.setattr(sys, "argv", ["krill-inspect", *words])
        code = inspect.main()
        return code, *capsys.readouterr()

    return say


def refused(told: Told) -> str:
    """Why a command was refused; it must have said nothing else."""
    code, out, err = told
    assert (code, out) == (2, ""), err
    return err


@pytest.mark.parametrize("words", ["tokens", "data=tokens", "store=tokens", "output=tokens"])
def test_a_folder_is_shown_with_its_own_tokenizer(told: Inspect, words: str):
    code, out, err = told(words, SHORT, "full=true", "ids=false", "rows=99")
    assert (code, err) == (0, "")
    assert "── document 2 (web), " in out
    assert "⟨bos⟩ㅋㅋㅋ 뷁⟨eos⟩" in out
    assert "\x1b" not in out


def test_the_documents_of_each_row_stand_in_it_once(told: Inspect):
    _, out, _ = told("tokens", "sequence_len=8", "packing=wrapped", "rows=999", "full=true", "ids=false")
    rows = [line for line in out.splitlines() if line.startswith("row ")]
    assert [int(line.split()[1]) for line in rows] == list(range(len(rows)))
    assert all(f" of {len(rows)}: " in line for line in rows)
    assert out.count("⟨bos⟩") == out.count("⟨eos⟩") == len(DOCUMENTS)


def test_the_same_seed_shows_the_same_rows(told: Inspect):
    words = ("tokens", "sequence_len=16", "rows=2")
    first, again, other = told(*words), told(*words), told(*words, "seed=3")
    assert first == again != other


def test_colours_are_for_terminals(told: Inspect, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    _, out, _ = told("tokens", SHORT)
    assert "\x1b[33m⟨bos⟩\x1b[0m" in out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in told("tokens", SHORT)[1]


def test_json_holds_every_figure_and_nothing_else(told: Inspect, here: Path):
    words = ("tokens", "format=json", SHORT, "sequence_lens=[8,64,16]", "verify=true")
    code, out, err = told(*words)
    assert (code, err) == (0, "")
    figures = json.loads(out)
    assert figures["counts"]["total"]["documents"] == 5
    assert [filled["sequence_len"] for filled in figures["filling"]] == [64, 8, 16]
    assert figures["verified"] is True
    assert all(token["text"] for token in figures["vocabulary"]["most_frequent"])

    (here / "outputs").rename(here / "elsewhere")
    figures = json.loads(told(*words)[1])
    assert [token["text"] for token in figures["vocabulary"]["most_frequent"]] == [None] * 10


def test_rows_need_the_tokenizer_and_figures_do_not(told: Inspect, here: Path):
    (here / "outputs").rename(here / "elsewhere")
    why = refused(told("tokens", SHORT))
    assert "the tokenizer of these tokens (signature tttttttt)" in why
    assert "tokenizer=FOLDER, or show no rows: rows=0" in why
    assert told("tokens", SHORT, "rows=0")[0] == 0
    code, out, _ = told("tokens", SHORT, "tokenizer=elsewhere/tokenizers/test-tttttttt")
    assert code == 0
    assert "⟨bos⟩" in out


def test_a_tokenizer_of_other_tokens_is_refused(told: Inspect, here: Path):
    make_tokenizer(here / "other", signature="o" * 64, vocab_size=320)
    assert "is not the one that made the tokens in tokens (signature tttttttt)" in refused(
        told("tokens", "tokenizer=other")
    )


def test_a_tokenizer_that_was_changed_is_not_found(told: Inspect, here: Path):
    (file,) = here.glob("outputs/tokenizers/*/tokenizer.json")
    file.write_text(file.read_text().replace("<think>", "<thimk>"))
    assert "name its folder" in refused(told("tokens"))


def test_one_row_is_shown_or_the_rows_there_are(told: Inspect):
    _, out, _ = told("tokens", "sequence_len=8", "row=1")
    assert out.count("\nrow ") == 1
    assert "\nrow 1 of " in out
    why = refused(told("tokens", SHORT, "row=1000"))
    assert "row=1000: no such row with sequence_len=64 and packing=best_fit; they count from 0 to " in why


def test_damage_is_told_by_the_store(told: Inspect, here: Path):
    tokens = here / "tokens" / "train-00000.tokens"
    content = bytearray(tokens.read_bytes())
    content[0] ^= 1
    tokens.write_bytes(content)
    assert told("tokens", SHORT, "rows=0")[0] == 0
    code, out, err = told("tokens", SHORT, "verify=true")
    assert (code, out) == (1, "")
    assert "train-00000.tokens has changed since it was written" in err
    tokens.unlink()
    assert "train-00000.tokens is missing" in told("tokens")[2]


def test_the_plot_goes_where_it_is_asked_for(told: Inspect, here: Path):
    code, out, err = told("tokens", SHORT, "rows=0", "format=json", "plot=그림/tokens.png")
    assert code == 0
    assert json.loads(out)
    assert "plot: 그림/tokens.png" in err
    assert (here / "그림" / "tokens.png").read_bytes().startswith(b"\x89PNG")
    (here / "file").touch()
    code, out, err = told("tokens", SHORT, "rows=0", "plot=file/tokens.png")
    assert (code, out) == (1, "")
    assert "plot=file/tokens.png: " in err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("nothere", "data=nothere: neither an option nor a folder (seen from "),
        ("data=python_doc", "Did you mean data=python_docs? There are: "),
        ("outputs", "outputs holds no token store (no manifest.json); krill-preprocess makes one"),
        ("store=nothere", "nothere holds no token store"),
        ("tokens store=tokens", "store=tokens and store=tokens: one store at a time"),
        ("tokens more", "'more' is not key=value; one word names the tokens"),
        ("-m tokens sequence_len=8,16", "sequence_lens=[512,1024]"),
        ("tokens tokenizer=bpe_33k", "Did you mean tokenizer=bpe_32k?"),
        ("tokens rows=-1", "rows=-1: input should be greater than or equal to 0"),
        ("tokens sequence_lens=[4]", "input should be greater than or equal to 8"),
        ("tokens format=yaml", "'text' or 'json'"),
        ("tokens plot=lengths.jpg", "write plot=lengths.jpg.png"),
        ("tokens rowz=1", "no such key 'rowz'. Did you mean row?"),
        ("data=files data.paths=[nothere.jsonl]", "nothere.jsonl: no such file or folder"),
    ],
)
def test_a_mistake_names_the_fix(told: Inspect, words: str, why: str):
    assert why in refused(told(*words.split()))


def test_tokens_that_are_not_made_yet_name_the_command_that_makes_them(told: Inspect, here: Path):
    (here / "a b.jsonl").write_text(json.dumps({"text": ENGLISH * 3}) + "\n")
    words = (
        "data=files",
        "data.paths=[a b.jsonl]",
        "tokenizer=bpe_32k",
        "rows=1",
        "top=3",
        "packing=wrapped",
    )
    why = refused(told(*words))
    made = "krill-preprocess data=files 'data.paths=[a b.jsonl]' tokenizer=bpe_32k packing=wrapped\n"
    assert why.replace("'data.paths=['\"'\"'a b.jsonl'\"'\"']'", "'data.paths=[a b.jsonl]'").endswith(
        f"these tokens are not prepared yet; make them: {made}"
    )
    code, out, _ = told(*words, "dry_run=true")
    assert code == 0
    assert out.startswith(f"tokens      missing {here / 'outputs' / 'data' / 'files-'}")
    assert not (here / "outputs" / "data").exists()


def test_nothing_heavy_is_loaded(here: Path):
    for words in (["--help"], ["tokens", SHORT], ["nothere"]):
        assert not loaded(here, "inspect", *words).intersection((*HEAVY, "matplotlib", "pyarrow"))


@pytest.mark.slow
def test_the_words_of_preprocess_find_what_it_made(tmp_path: Path):
    lines = [json.dumps({"text": f"{number}: {KOREAN}{ENGLISH}"}, ensure_ascii=False) for number in range(40)]
    (tmp_path / "가.jsonl").write_text("\n".join(lines), encoding="utf-8")
    words = (
        "data=files",
        "data.paths=[가.jsonl]",
        "tokenizer.vocab_size=330",
        "data.validation_fraction=0.2",
    )
    assert complaints(run(tmp_path, "krill-inspect", *words))
    assert [path.name for path in tmp_path.iterdir()] == ["가.jsonl"]
    made = run(tmp_path, "krill-preprocess", *words)
    assert made.returncode == 0, made.stderr
    by_words = run(tmp_path, "krill-inspect", *words)
    by_folder = run(tmp_path, "krill", "inspect-dataset", made.stdout.strip())
    assert by_words.returncode == by_folder.returncode == 0, by_words.stderr + by_folder.stderr
    assert by_words.stdout.splitlines()[1:] == by_folder.stdout.splitlines()[1:]
    assert not empty(tmp_path / "outputs")
