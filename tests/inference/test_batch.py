"""A batch answers as each prompt alone does, in the order of the prompts, and no answer twice after a kill."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
from compositions import compose
from console import get_preloaded_environment
from pyarrow import parquet

from krill.config.schema import InferConfig
from krill.config.validation import validate_config
from krill.errors import UsageError
from krill.inference.batch import AnswerFiles, write_answers
from krill.inference.engine import GenerationEngine
from krill.inference.generate import encode_prompt, generate
from krill.inference.prompts import read_prompts
from krill.inference.sampling import SamplingParams
from krill.inference.token_scores import score_tokens
from krill.launch import answers
from krill.launch.answers import answer_batch
from krill.tokenizer.artifact import TokenizerFolder

PROMPTS = ["ab", "가나다", "a longer prompt of 30 characters", "b", "x" * 50, "zz <|eos|>"]
OVERRIDES = ("device=cpu", "max_new_tokens=6", "temperature=0", "repetition_penalty=1", "max_batch_size=2")


@pytest.fixture
def prompts_file(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    lines = [json.dumps({"prompt": prompt, "id": f"p{index}"}) for index, prompt in enumerate(PROMPTS)]
    file.write_text("\n".join(lines))
    return file


@pytest.fixture
def config(model_folder: Path, prompts_file: Path) -> InferConfig:
    return make_config(model_folder, f"prompts={prompts_file}")


def make_config(model_folder: Path, *overrides: str) -> InferConfig:
    return validate_config(
        InferConfig, compose("infer", f"model.path={model_folder}", *OVERRIDES, *overrides)
    )


def read_answers(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()]


def test_answers_are_those_of_each_prompt_alone_in_order(
    config: InferConfig, model: Any, tokenizer: TokenizerFolder, tmp_path: Path
) -> None:
    folder = answer_batch(config, None, tmp_path / "out")
    params = SamplingParams(max_new_tokens=6, temperature=0, repetition_penalty=1.0)
    records = read_answers(folder)
    assert [record["answer"] for record in records] == [
        generate(model, tokenizer, prompt, params) for prompt in PROMPTS
    ]
    assert [(record["id"], record["prompt"]) for record in records] == [
        (f"p{index}", prompt) for index, prompt in enumerate(PROMPTS)
    ]
    assert {record["finish_reason"] for record in records} <= {"eos", "length"}
    assert records[0]["prompt_tokens"] == 3
    assert {path.name for path in folder.iterdir()} == {"answers.jsonl", "settings.json", ".answers.lock"}


def test_several_answers_have_seeds_of_their_own(
    config: InferConfig, model: Any, tokenizer: TokenizerFolder, tmp_path: Path
) -> None:
    sampled = config.model_copy(update={"n": 2, "seed": 5, "temperature": 1.0})
    records = read_answers(answer_batch(sampled, None, tmp_path / "out"))
    assert [record["seed"] for record in records] == [5, 6] * len(PROMPTS)
    params = SamplingParams(max_new_tokens=6, temperature=1.0, repetition_penalty=1.0, seed=6)
    assert records[3]["answer"] == generate(model, tokenizer, PROMPTS[1], params)


def test_scored_answers_have_the_scores_of_their_tokens(
    config: InferConfig, model: Any, tokenizer: TokenizerFolder, tmp_path: Path
) -> None:
    plain = read_answers(answer_batch(config, None, tmp_path / "plain"))
    records = read_answers(answer_batch(config.model_copy(update={"inspect": True}), None, tmp_path / "out"))
    assert [{key: record[key] for key in plain[0]} for record in records] == plain
    for record in records:
        ids = encode_prompt(tokenizer, record["prompt"])
        expected = score_tokens(model, [*ids, *(score["id"] for score in record["scores"])])[len(ids) - 1 :]
        assert len(record["scores"]) == record["answer_tokens"]
        assert [score["logprob"] for score in record["scores"]] == pytest.approx(
            [score.logprob for score in expected], abs=1e-5
        )
        assert all(len(score["top"]) == 5 for score in record["scores"])


def test_a_killed_batch_is_resumed_without_repeating_an_answer(
    config: InferConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = (answer_batch(config, None, tmp_path / "whole") / "answers.jsonl").read_bytes()
    complete: list[str] = []
    step = GenerationEngine.step

    def die(self: GenerationEngine) -> Any:
        progress = step(self)
        complete.extend(item.generation.text for item in progress if item.generation.finish_reason)
        if len(complete) >= 3 and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            raise KeyboardInterrupt
        return progress

    monkeypatch.setattr(GenerationEngine, "step", die)
    with pytest.raises(KeyboardInterrupt):
        answer_batch(config, None, tmp_path / "out")
    (rank_file,) = (tmp_path / "out").glob(".answers-*-rank0.jsonl")
    written = len(rank_file.read_bytes().splitlines())
    with open(rank_file, "ab") as file:
        file.write(b'{"prompt": 5, "sam')  # torn by the kill
    other = config.model_copy(
        update={"seed": 1}
    )  # other settings in between neither use nor lose what is there
    assert len(read_answers(answer_batch(other, None, tmp_path / "other"))) == len(PROMPTS)
    complete.clear()
    answer_batch(config, None, tmp_path / "out")
    assert (tmp_path / "out" / "answers.jsonl").read_bytes() == expected
    assert 0 < written < len(PROMPTS)
    assert len(complete) == len(PROMPTS) - written


def test_finished_answers_are_kept_and_other_settings_replace_them(
    config: InferConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompts_file: Path
) -> None:
    folder = answer_batch(config, None, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(answers, "_answer_share", lambda *_: pytest.fail("answered again"))
        answer_batch(config, None, folder)
    answer_batch(config.model_copy(update={"max_new_tokens": 2}), None, folder)
    assert {record["answer_tokens"] for record in read_answers(folder)} == {2}
    write_answers(folder, [{"answer": "of another command"}])
    answer_batch(config, None, folder)
    assert len(read_answers(folder)) == len(PROMPTS)
    prompts_file.write_text(json.dumps({"prompt": "new"}))
    answer_batch(config, None, folder)
    assert [record["prompt"] for record in read_answers(folder)] == ["new"]


def test_two_ranks_share_the_prompts(
    config: InferConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in get_preloaded_environment().items():
        monkeypatch.setenv(name, value)
    hardware = config.hardware.model_copy(update={"processes": 2})
    shared = answer_batch(config.model_copy(update={"hardware": hardware}), None, tmp_path / "two")
    alone = answer_batch(config, None, tmp_path / "one")
    assert (shared / "answers.jsonl").read_bytes() == (alone / "answers.jsonl").read_bytes()
    assert {path.name for path in shared.iterdir()} == {"answers.jsonl", "settings.json", ".answers.lock"}


def test_a_second_process_is_kept_out(config: InferConfig, tmp_path: Path) -> None:
    with (
        AnswerFiles(tmp_path / "out", "s").lock(),
        pytest.raises(UsageError, match="another process is writing answers there"),
    ):
        answer_batch(config, None, tmp_path / "out")


def test_long_prompts_are_found_before_the_work(
    config: InferConfig, prompts_file: Path, tmp_path: Path
) -> None:
    prompts_file.write_text("\n".join(json.dumps("x" * length) for length in (3, 63, 80)))
    with pytest.raises(
        UsageError,
        match=r"prompts\.jsonl, line 2: the prompt has 64 tokens, .* 64 \(2 such prompts\); shorten",
    ):
        answer_batch(config, None, tmp_path / "out")


# --- files of prompts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".txt", ".parquet"])
def test_prompts_of_each_kind_of_file(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"prompts{suffix}"
    if suffix == ".parquet":
        parquet.write_table(pyarrow.table({"prompt": ["가", "b"], "id": [7, 8]}), file)
    elif suffix == ".txt":
        file.write_text("\ufeff가\n\nb\r\n", encoding="utf-8")
    else:
        file.write_text('{"prompt": "가", "other": 1}\n\n"b"\n', encoding="utf-8")
    prompts = read_prompts(str(file))
    assert [prompt.text for prompt in prompts] == ["가", "b"]
    assert [prompt.id for prompt in prompts] == ([7, 8] if suffix == ".parquet" else [1, 3])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '"a"\n{"text": "b"}', r"a\.jsonl, line 2: no prompt \(it has text\)"),
        ("a.jsonl", '{"prompt": null, "id": 1}', r"line 1: no prompt \(it has id\)"),
        ("a.jsonl", r'{"id": "\ud83d", "prompt": "a"}', r"line 1 is not valid Unicode: '\\ud83d'"),
        (
            "a.jsonl",
            '{"messages": [{"role": "user", "content": "a", "x": NaN}]}',
            "not JSON .NaN is not a number",
        ),
        ("a.jsonl", "{", r"a\.jsonl, line 1: not JSON"),
        ("a.jsonl", "3", r"line 1: neither a text nor an object"),
        ("a.jsonl", '{"prompt": 3}', r"line 1: the prompt is not a text"),
        ("a.jsonl", '{"messages": [{"role": "user"}]}', "line 1: messages is not a list of objects"),
        ("a.jsonl", '{"prompt": "a", "id": [1]}', "line 1: the id is neither"),
        ("a.txt", "\n \n", "no prompts in it"),
        ("a.txt", "\xff", "not UTF-8"),
        ("a.parquet", "PAR1", "not a Parquet file"),
        ("a.csv", "a", r"use a file \.jsonl, \.txt or \.parquet"),
        ("", "", "no such file"),
    ],
)
def test_a_file_without_prompts_is_one_line(name: str, content: str, message: str, tmp_path: Path) -> None:
    if name:
        (tmp_path / name).write_text(content, encoding="latin-1")
    with pytest.raises(UsageError, match=message) as error:
        read_prompts(str(tmp_path / (name or "none.txt")))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("prompt", pyarrow.array([b"\xff"]).cast(pyarrow.string(), safe=False)),
        ("id", pyarrow.array([2**62], pyarrow.timestamp("us"))),
    ],
)
def test_a_parquet_file_with_values_that_python_cannot_represent(
    column: str, values: Any, tmp_path: Path
) -> None:
    columns = {"prompt": pyarrow.array(["a"]), column: values}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    with pytest.raises(UsageError, match=r"a\.parquet: not a Parquet file that can be read"):
        read_prompts(str(tmp_path / "a.parquet"))


@pytest.mark.slow
def test_a_compiled_model_gives_the_same_answers(
    config: InferConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = (answer_batch(config, None, tmp_path / "eager") / "answers.jsonl").read_bytes()
    with pytest.raises(
        UsageError, match=r"hardware\.compile=true needs a CUDA device; use hardware.compile=auto"
    ):
        answer_batch(compile_config(config), None, tmp_path / "out")
    monkeypatch.setattr(answers, "find_compile_obstacle", lambda device: None)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    folder = answer_batch(compile_config(config), None, tmp_path / "out")
    assert (folder / "answers.jsonl").read_bytes() == expected


def compile_config(config: InferConfig) -> InferConfig:
    return config.model_copy(update={"hardware": config.hardware.model_copy(update={"compile": True})})
