"""krill-inspect shows a store by folder or by what would make it, compares tokenizers, colors a text; it reads and
never makes, and mistakes name the fix."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from console import error_messages, is_empty, run_command
from rich.cells import cell_len
from stores import ENGLISH, KOREAN, make_tokenizer, write_store
from test_import_light import HEAVY, loaded

from krill.cli import inspect
from krill.cli import tokenizer as krill_tokenizer

DOCUMENTS = [("책", KOREAN), ("web", ENGLISH), ("web", "ㅋㅋㅋ 뷁"), ("책", KOREAN * 9)]
SHORT = "sequence_len=64"

Told = tuple[int, str, str]
"""Exit code, standard output, standard error."""
Inspect = Callable[..., Told]


@pytest.fixture
def here(clean_folder: Path) -> Path:
    """A working directory with a store in tokens/, whose tokenizer is where krill puts tokenizers."""
    tokenizer = make_tokenizer(clean_folder / "outputs" / "tokenizers" / "test-tttttttt")
    write_store(clean_folder / "tokens", tokenizer, DOCUMENTS, [("web", ENGLISH * 2)])
    return clean_folder


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


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_nothing_is_wider_than_the_terminal(told: Inspect, monkeypatch: pytest.MonkeyPatch, columns: int):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    complete = told("tokens", SHORT, "top=5")[1]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    out = told("tokens", SHORT, "top=5")[1]
    assert [line for line in out.splitlines() if cell_len(line) > columns and "/" not in line] == []
    assert "책" in out
    assert "bytes/token" in complete


def test_colors_are_for_terminals(told: Inspect, monkeypatch: pytest.MonkeyPatch):
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
    assert [filled["sequence_len"] for filled in figures["packing"]] == [64, 8, 16]
    assert figures["verified"] is True
    assert all(token["text"] for token in figures["vocabulary"]["most_frequent"])

    (here / "outputs").rename(here / "elsewhere")
    figures = json.loads(told(*words)[1])
    assert [token["text"] for token in figures["vocabulary"]["most_frequent"]] == [None] * 10


def test_rows_need_the_tokenizer_and_figures_do_not(told: Inspect, here: Path):
    (here / "outputs").rename(here / "elsewhere")
    why = refused(told("tokens", SHORT))
    assert "the tokenizer of these tokens (signature tttttttt)" in why
    assert "tokenizer=FOLDER, or show no rows with rows=0" in why
    assert told("tokens", SHORT, "rows=0")[0] == 0
    code, out, _ = told("tokens", SHORT, "tokenizer=elsewhere/tokenizers/test-tttttttt")
    assert code == 0
    assert "⟨bos⟩" in out


def test_a_tokenizer_of_other_tokens_is_refused(told: Inspect, here: Path):
    make_tokenizer(here / "other", signature="o" * 64, vocab_size=320)
    assert "did not encode the tokens in tokens (signature tttttttt)" in refused(
        told("tokens", "tokenizer=other")
    )


def test_a_tokenizer_that_was_changed_is_reported(told: Inspect, here: Path):
    (file,) = here.glob("outputs/tokenizers/*/tokenizer.json")
    file.write_text(file.read_text().replace("<think>", "<thimk>"))
    code, out, err = told("tokens")
    assert (code, out) == (1, "")
    assert f"{file.relative_to(here)} has changed since krill wrote it" in err


def test_one_row_is_shown_or_the_rows_there_are(told: Inspect):
    _, out, _ = told("tokens", "sequence_len=8", "row=1")
    assert out.count("\nrow ") == 1
    assert "\nrow 1 of " in out
    why = refused(told("tokens", SHORT, "row=1000"))
    assert "row=1000: no such row with sequence_len=64 and packing=best_fit; use 0 to " in why


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
    assert "plot        그림/tokens.png" in err
    assert (here / "그림" / "tokens.png").read_bytes().startswith(b"\x89PNG")
    (here / "file").touch()
    code, out, err = told("tokens", SHORT, "rows=0", "plot=file/tokens.png")
    assert (code, out) == (1, "")
    assert "plot=file/tokens.png: " in err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("nothere", "data=nothere: neither an option nor a folder (relative to "),
        ("data=python_doc", "Did you mean data=python_docs? Available: "),
        ("outputs", "outputs is not a token store (no manifest.json); create one with krill-preprocess"),
        ("store=nothere", "nothere is not a token store"),
        ("tokens store=tokens", "store=tokens and store=tokens: one store at a time"),
        ("tokens more", "'more' is not key=value; one argument names the tokens"),
        ("-m tokens sequence_len=8,16", "sequence_lens=[512,1024]"),
        ("tokens tokenizer=bpe_33k", "Did you mean tokenizer=bpe_32k?"),
        ("tokens rows=-1", "rows=-1: input should be greater than or equal to 0"),
        ("tokens sequence_lens=[4]", "input should be greater than or equal to 8"),
        ("tokens format=yaml", "'text' or 'json'"),
        ("tokens plot=lengths.jpg", "set plot=lengths.jpg.png"),
        ("tokens rowz=1", "no such key 'rowz'. Did you mean row?"),
        ("data=files data.paths=[nothere.jsonl]", "nothere.jsonl: no such file or folder"),
        ("tokenizers=[bpe_33k]", "neither an option nor a folder"),
        ("tokenizers=[bpe_33k]", "Did you mean bpe_32k? Available: "),
        ("tokenizers=[./nothere]", "tokenizers=./nothere: no such folder (relative to "),
        ("tokenizers=[tokens]", "tokens: no tokenizer.json in this folder"),
        ("tokenizers=bpe_4k,bpe_32k", "use tokenizers=[…] for a list"),
        ("tokenizers=[bpe_4k] tokenizer=bpe_32k", "leave out tokenizer="),
        ("tokenizers=[bpe_4k] data=tokens", "store= and tokenizers=: one at a time"),
        ("tokenizers=[bpe_4k] text=a", "tokenizers= and text=: one at a time"),
        ("tokenizers=[bpe_4k] data.validation_fraction=0", "no document is held out"),
        ("tokenizers=[bpe_4k] eval_bytes=0", "eval_bytes=0: input should be greater than 0"),
        ("text=a tokenizer=bpe_33k", "Did you mean tokenizer=bpe_32k?"),
        ("text=a tokenizer=./nothere", "tokenizer.path=./nothere: no such folder"),
        ("text=a tokenizer=bpe_32k", "not trained yet; run: krill-tokenizer tokenizer=bpe_32k"),
        ("text=a plot=a.png", "plot= draws a store or tokenizers=, not text="),
        ("text=\udcff tokenizer=outputs/tokenizers/test-tttttttt", "text= is not valid UTF-8 (character 1)"),
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
        f"these tokens are not prepared yet; run: {made}"
    )
    code, out, _ = told(*words, "dry_run=true")
    assert code == 0
    assert out.startswith("tokens      missing outputs/data/files-")
    assert not (here / "outputs" / "data").exists()


# --- tokenizers --------------------------------------------------------------------------------------------

MINE = "outputs/tokenizers/test-tttttttt"
DATA = ("data=files", "data.paths=[a b.jsonl]", "data.validation_fraction=0.5")


@pytest.fixture
def data(here: Path) -> Path:
    """The file that DATA names: 40 documents, half of them Korean."""
    lines = [
        json.dumps({"text": f"{number}: {(KOREAN, ENGLISH)[number % 2] * 3}"}, ensure_ascii=False)
        for number in range(40)
    ]
    (here / "a b.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return here


def made(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """Run krill-tokenizer."""
    monkeypatch.setattr(sys, "argv", ["krill-tokenizer", *words])
    assert krill_tokenizer.main() == 0


def test_tokenizers_are_judged_on_what_is_held_out(
    told: Inspect, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    words = (*DATA, "tokenizer.vocab_size=330")
    for option in ("bpe_4k", "qwen_like"):
        made(
            monkeypatch,
            *words,
            f"tokenizer={option}",
            "tokenizer.special_tokens=[]",
            "tokenizer.chat_template=null",
        )
    capsys.readouterr()
    words = (*words, "tokenizer.special_tokens=[]", "tokenizer.chat_template=null")
    words = (*words, f"tokenizers=[bpe_4k,{MINE},qwen_like]")
    code, out, err = told(*words, "format=json", "plot=그림/tokenizers.png")
    assert code == 0, err
    figures = json.loads(out)
    labels = [one["label"] for one in figures["tokenizers"]]
    assert labels == ["bpe_4k", MINE, "qwen_like"]
    assert figures["data"] == "files"
    assert 0 < figures["documents"] < 40
    for one in figures["tokenizers"]:
        assert one["all"]["documents"] == figures["documents"]
        assert set(one["languages"]) == {"ko", "en"}
        assert one["round_trip"]["failures"] == 0
    assert (data / "그림" / "tokenizers.png").read_bytes().startswith(b"\x89PNG")
    code, out, err = told(*words, "eval_bytes=500")
    assert (code, err) == (0, "")
    assert out.count(f"\n{MINE} ") == 4
    _, out, _ = told(*words, "dry_run=true")
    assert [line.split()[:2] for line in out.splitlines()] == [["tokenizer", "read"]] * 3


def test_tokenizers_that_are_not_trained_yet_name_the_commands_that_make_them(told: Inspect, data: Path):
    why = refused(told(*DATA, "tokenizers=[bpe_4k,bpe_32k]", "eval_bytes=99", "plot=a.png")).splitlines()
    assert len(why) == 2
    for line, option in zip(why, ("bpe_4k", "bpe_32k"), strict=True):
        command = shlex.split(line.partition("run: ")[2])
        assert command == [
            "krill-tokenizer",
            DATA[0],
            DATA[1],
            DATA[2],
            f"tokenizer={option}",
        ]
    assert not (data / "outputs" / "tokenizers" / "bpe_4k").exists()


def test_an_option_of_ones_own_may_be_judged(told: Inspect, data: Path, monkeypatch: pytest.MonkeyPatch):
    (data / "mine" / "tokenizer").mkdir(parents=True)
    option = f"defaults: [bpe_4k, _self_]\nname: theirs\npath: {data / MINE}\n"
    (data / "mine" / "tokenizer" / "theirs.yaml").write_text(option, encoding="utf-8")
    monkeypatch.setenv("KRILL_CONF", str(data / "mine"))
    code, out, err = told(*DATA, "tokenizers=theirs", "format=json")
    assert (code, err) == (0, "")
    assert json.loads(out)["tokenizers"][0]["folder"] == str(data / MINE)


def test_data_of_which_nothing_is_held_out_is_refused(told: Inspect, data: Path):
    words = (*DATA[:2], "data.validation_fraction=1e-9", f"tokenizers=[{MINE}]")
    assert "data.validation_fraction=1e-09: no document of this data is held out" in refused(told(*words))


@pytest.mark.parametrize(
    "text",
    [
        "안녕하세요 hello",
        "a,b [c] {d: e} 'f' \"g\" $HOME ${lr} \\",
        "<|eos|> is text",
        "null",
        "",
        "key=value",
        "첫 줄\n둘째 줄\t👍🏽",
        "data=nothere",
    ],
)
def test_a_text_is_shown_by_its_tokens_as_typed(told: Inspect, text: str):
    words = (f"tokenizer={MINE}", f"text={text}")
    code, out, err = told(*words, "format=json")
    assert (code, err) == (0, "")
    shown = json.loads(out)
    assert shown["text"] == "".join(piece["text"] for piece in shown["pieces"]) == text
    assert [token for piece in shown["pieces"] for token in piece["ids"]] == shown["ids"]
    assert not {0, 1, 2, 3}.intersection(shown["ids"])
    assert (shown["bytes"], shown["tokens"]) == (len(text.encode()), len(shown["ids"]))
    _, out, _ = told(*words, "ids=false")
    assert out.split("\n\n", 1)[1].replace("↵", "") == (text.replace("\t", "\\t") + "\n" if text else "")


def test_a_text_is_colored(told: Inspect, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    _, out, _ = told(f"tokenizer={MINE}", "text=한국어 문장은 <|eos|>")
    assert "\x1b[94m" in out
    assert "\x1b[96m" in out
    assert "\x1b[34m" not in out, "dark blue cannot be read on black"
    assert "⟨" not in out


def test_nothing_heavy_is_loaded(here: Path):
    for words in ([f"tokenizer={MINE}", "text=a"], ["tokenizers=[bpe_33k]"]):
        assert not loaded(here, "inspect", *words).intersection((*HEAVY, "matplotlib"))
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
    assert error_messages(run_command(tmp_path, "krill-inspect", *words))
    assert [path.name for path in tmp_path.iterdir()] == ["가.jsonl"]
    made = run_command(tmp_path, "krill-preprocess", *words)
    assert made.returncode == 0, made.stderr
    by_words = run_command(tmp_path, "krill-inspect", *words)
    by_folder = run_command(tmp_path, "krill", "inspect-dataset", made.stdout.strip())
    assert by_words.returncode == by_folder.returncode == 0, by_words.stderr + by_folder.stderr
    assert by_words.stdout.splitlines()[1:] == by_folder.stdout.splitlines()[1:]
    assert not is_empty(tmp_path / "outputs")
