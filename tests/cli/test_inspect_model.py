"""krill-inspect model=RUN text=… and krill-infer inspect=true show the same scores, and mistakes name the fix."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from stores import make_byte_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from krill.cli import infer, inspect
from krill.cli.inspect_model import AnswerInspector
from krill.inference.engine import Generation, GenerationEngine
from krill.inference.generate import encode_prompt
from krill.inference.load import load_model
from krill.inference.sampling import SamplingParams

Run = Callable[..., tuple[int, str, str]]
TEXT = "text=옛날 a"
MODEL = "model=./모델"


@pytest.fixture
def here(clean_folder: Path) -> Path:
    """A working directory with a model of two layers and four heads, and its tokenizer of bytes, in 모델/."""
    torch.set_num_threads(1)
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=259, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3, eos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(clean_folder / "모델")
    make_byte_tokenizer(clean_folder / "bytes").copy_to(clean_folder / "모델", 64)
    return clean_folder


@pytest.fixture
def run(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """run("krill-inspect", "rows=0"): exit code, standard output and standard error of a command in `here`."""

    def call(command: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [command, *arguments])
        code = {"krill-inspect": inspect, "krill-infer": infer}[command].main()
        return code, *capsys.readouterr()

    return call


def test_a_text_is_shown_and_written(run: Run, here: Path) -> None:
    code, out, err = run("krill-inspect", MODEL, TEXT, "lens=true", "attention=1.3", "output=결과")
    assert code == 0, err
    assert out.startswith("model       모델\ntext        8 bytes in 9 tokens, ")
    assert "logit lens: " in out
    (content,) = json.loads((here / "결과" / "tokens.json").read_text())
    assert [score["text"] for score in content["scores"]][-3:] == [" ", "a", "eos"]
    assert [layer["layer"] for layer in content["lens"]] == ["embedding", "0", "1"]
    assert (content["attention"]["layer"], content["attention"]["head"]) == (1, 3)
    assert (here / "결과" / "attention.png").read_bytes().startswith(b"\x89PNG")
    assert "data:image/png;base64," in (here / "결과" / "tokens.html").read_text()
    assert f"page        {Path('결과/tokens.html')}" in err
    code, out, _ = run("krill-inspect", MODEL, TEXT, "lens=true", "attention=1.3", "format=json")
    assert json.loads(out) == content


def test_an_answer_is_shown_and_written(run: Run, here: Path) -> None:
    code, out, err = run("krill-infer", MODEL, "prompt=가", "max_new_tokens=5", "inspect=true", "output=답")
    assert code == 0, err
    (content,) = json.loads((here / "답" / "tokens.json").read_text())
    answer = json.loads((here / "답" / "answers.jsonl").read_text())["answer"]
    assert out.startswith(f"{answer}\n\nmodel       모델\nprompt      가\nanswer")
    assert (content["prompt"], content["text"], content["tokens"]) == ("가", answer, 5)
    assert (here / "답" / "tokens.html").is_file()


def test_the_scores_of_many_answers_are_written_to_their_lines(run: Run, here: Path) -> None:
    (here / "prompts.txt").write_text("가\nb\n")
    code, out, err = run(
        "krill-infer", MODEL, "prompts=prompts.txt", "max_new_tokens=3", "inspect=true", "output=답"
    )
    assert (code, out) == (0, "답\n"), err
    records = [json.loads(line) for line in (here / "답" / "answers.jsonl").read_text().splitlines()]
    assert [len(record["scores"]) == record["answer_tokens"] for record in records] == [True, True]


def test_an_answer_without_scores_is_scored_when_it_is_shown(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = load_model("./모델", torch.device("cpu"))
    params = SamplingParams(max_new_tokens=5, temperature=1.0)
    inspector = AnswerInspector(loaded)

    def show(generation: Generation) -> str:
        inspector.show("가", generation)
        return capsys.readouterr().out

    ids = encode_prompt(loaded.tokenizer, "가")
    scored, unscored = (Generation(ids, params, top_logprobs=top) for top in (5, None))
    for generation in (scored, unscored):
        GenerationEngine(loaded.model, loaded.tokenizer).run([generation])
    assert (len(scored.scores), unscored.scores) == (5, [])
    assert show(unscored) == show(scored)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((MODEL, TEXT, "attention=0.10", "plot=a.png"), "attention=0.10: no head 10; layer 0 has heads 0 to 3"),
        ((MODEL, TEXT, "attention=1"), "not LAYER.HEAD, two numbers from 0; use attention=0.0"),
        ((MODEL, TEXT, "attention=0.0"), "attention=0.0 draws a picture; set plot=attention.png"),
        ((MODEL, TEXT, "plot=a.png"), "plot= draws attention= of a text; add attention=LAYER.HEAD"),
        (("model=nowhere", TEXT), "model=nowhere: "),
        (("attention=0.0",), "attention=0.0 looks into a trained model; add text=… and model=RUN"),
        ((MODEL,), 'add the text: krill-inspect model=./모델 text="…"'),
    ],
)  # fmt: skip
def test_a_mistake_names_the_fix(run: Run, here: Path, arguments: tuple[str, ...], why: str) -> None:
    before = sorted(here.rglob("*"))
    code, out, err = run("krill-inspect", *arguments)
    assert (code, out) == (2, ""), err
    assert why in err
    assert sorted(here.rglob("*")) == before
