"""Going on from a model: its weights, its tokenizer, and a run of its own; and architectures of transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from krill.cli import app
from krill.cli.train import run_task
from krill.config.schema import PretrainedModelConfig
from krill.errors import UsageError
from krill.inference.load import load_model_and_tokenizer
from krill.models.build import build_model, count_parameters
from krill.runs.record import read_metrics, read_status

STILL = ("optimizer=adamw", "lr=1e-12", "eval_every=1", "save_every=100", "steps=1", "model=pretrained")
"""One step that moves nothing."""


@pytest.fixture
def finished(krill_train: Any) -> Path:
    assert krill_train("lr=1e-2") == 0
    run: Path = krill_train.runs()[0]
    return run


def read_from(place: Path) -> PretrainedModelConfig:
    return PretrainedModelConfig.model_validate(
        {"name": "again", "family": "pretrained", "from": str(place), "max_position_embeddings": 64}
    )


def eval_losses(run: Path) -> list[float]:
    return [line["eval_loss"] for line in read_metrics(run) if "eval_loss" in line]


def test_it_begins_where_the_model_ended(finished: Path, krill_train: Any) -> None:
    assert krill_train(*STILL, f"model.from={finished}", "sequence_len=64") == 0
    (run,) = krill_train.runs("pretrained")
    before = (read_status(finished) or {})["metrics"]["eval_loss"]
    assert eval_losses(run)[0] == pytest.approx(before, rel=1e-6)
    assert eval_losses(finished)[0] == before, "the model has learned, else this would prove nothing"
    assert before < (read_status(finished) or {})["metrics"]["uniform"] - 0.1


def test_weights_are_those_of_the_folder_in_fp32(finished: Path, tmp_path: Path) -> None:
    ready = AutoModelForCausalLM.from_pretrained(finished / "model")
    half = tmp_path / "half"
    ready.to(torch.bfloat16).save_pretrained(half)
    for place, whole in ((finished, True), (half, False)):
        torch.manual_seed(7)
        model: Any = build_model(read_from(place), 320, 5, 6, 7)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert model.config.use_cache is False
        assert (model.config.bos_token_id, model.generation_config.pad_token_id) == (5, 7)
        theirs = AutoModelForCausalLM.from_pretrained(
            finished / "model" if whole else half, dtype=torch.float32
        )
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), theirs.parameters(), strict=True))
    assert count_parameters(read_from(finished), 320) == ready.num_parameters()


def test_its_identity_is_its_content_not_its_place(finished: Path, krill_train: Any, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(finished / "model", elsewhere)
    for place in (finished, elsewhere):
        assert krill_train(*STILL, f"model.from={place}", "sequence_len=64") == 0
    config = elsewhere / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rms_norm_eps": 1e-3}))
    assert krill_train(*STILL, f"model.from={elsewhere}", "sequence_len=64") == 0
    first, second, third = ((read_status(run) or {})["signature"] for run in krill_train.runs("pretrained"))
    assert first == second != third


def test_the_same_command_goes_on(finished: Path, krill_train: Any) -> None:
    """config.yaml says `from`, as a person types it, and is read again by from=."""
    assert krill_train(*STILL, f"model.from={finished}", "sequence_len=64") == 0
    (run,) = krill_train.runs("pretrained")
    assert f"from: {finished}" in (run / "config.yaml").read_text()
    assert app.main("train", run_task, [f"from={run}", "seed=1"]) == 0
    again = krill_train.runs("pretrained")[-1]
    assert again != run
    assert (again / "config.yaml").read_text() == (run / "config.yaml").read_text().replace(
        "seed: 0", "seed: 1"
    )


def test_a_checkpoint_will_do(finished: Path, krill_train: Any) -> None:
    assert (
        krill_train(*STILL, f"model.from={finished / 'checkpoints' / 'checkpoint-2'}", "sequence_len=64") == 0
    )


@pytest.mark.parametrize("place", ["", "checkpoints/checkpoint-2"])
def test_another_tokenizer_is_refused_and_the_right_one_named(
    place: str, finished: Path, krill_train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*STILL, f"model.from={finished / place}", "sequence_len=64", "tokenizer.vocab_size=330")
    assert krill_train(*words) == 2
    said = capsys.readouterr().err
    assert "tokenizer=pretrained tokenizer.path=" in said
    typed = said.rpartition("tokenizer.path=")[2].split()[0]
    words = (*words[:-1], "tokenizer=pretrained", f"tokenizer.path={typed}", "~tokenizer.vocab_size")
    assert krill_train(*[word for word in words if not word.startswith("~")]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.from=nowhere"], "model.from=nowhere: not a model"),
        (["sequence_len=128"], "write sequence_len=64"),
    ],
)
def test_what_cannot_be_read_is_refused(
    words: list[str], said: str, finished: Path, krill_train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krill_train(*STILL, f"model.from={finished}", "sequence_len=64", *words) == 2
    assert said in capsys.readouterr().err


def test_a_model_without_its_tokenizer_must_have_as_many_entries(
    finished: Path, krill_train: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    AutoModelForCausalLM.from_pretrained(finished / "model").save_pretrained(bare)
    words = (*STILL, f"model.from={bare}", "sequence_len=64")
    assert krill_train(*words, "tokenizer.vocab_size=319") == 2
    assert "it has 320 entries and no tokenizer in its folder" in capsys.readouterr().err
    assert krill_train(*words) == 0


def test_weights_that_are_missing_are_no_random_ones(finished: Path, tmp_path: Path) -> None:
    lacking = tmp_path / "lacking"
    shutil.copytree(finished / "model", lacking)
    config = lacking / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 3}))
    with pytest.raises(UsageError, match=r"lacks 9 weights"):
        build_model(read_from(lacking), 320, 5, 6, 7)
    (lacking / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="has no weights"):
        build_model(read_from(lacking), 320, 5, 6, 7)
    with pytest.raises(UsageError, match="320 embeddings, the tokenizer has 321"):
        build_model(read_from(finished), 321, 5, 6, 7)


@pytest.mark.parametrize(
    ("model_type", "backend"), [("gpt2", "varlen"), ("gemma2", "eager"), ("gpt_neox", "varlen")]
)
def test_another_architecture_trains_from_text_to_model(
    model_type: str, backend: str, krill_train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["hidden_size=16", "num_hidden_layers=1", "num_attention_heads=2"]
    more = ["num_key_value_heads=1", "head_dim=8", "intermediate_size=24"] if model_type == "gemma2" else []
    words = [f"model.config.{word}" for word in (*sizes, *more)]
    assert krill_train("model=auto", f"model.model_type={model_type}", *words, "sequence_len=64") == 0
    assert f"attention {backend}" in capsys.readouterr().err
    (run,) = krill_train.runs(model_type)
    model, tokenizer = load_model_and_tokenizer(str(run), torch.device("cpu"))
    assert (model.config.model_type, tokenizer.vocab_size) == (model_type, 320)


def test_an_architecture_that_leaks_is_refused_before_anything_is_made(
    krill_train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krill_train("model=auto", "model.model_type=mamba", "sequence_len=64") == 2
    assert "its state carries over from one to the next" in capsys.readouterr().err
    assert not krill_train.runs("mamba")
