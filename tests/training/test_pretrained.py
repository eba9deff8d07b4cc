"""Tests training from a pretrained model, and of architectures that transformers provides."""

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
from krill.inference.load import load_model
from krill.models.build import build_model, count_parameters
from krill.runs.record import read_config, read_metrics, read_status

STILL = ("optimizer=adamw", "lr=1e-12", "eval_every=1", "save_every=100", "steps=1", "model=pretrained")
"""One step with a learning rate too small to change the weights."""


@pytest.fixture
def finished_run(krill_train: Any) -> Path:
    assert krill_train("lr=1e-2") == 0
    run: Path = krill_train.runs()[0]
    return run


def config_for(path: Path) -> PretrainedModelConfig:
    return PretrainedModelConfig.model_validate(
        {"name": "again", "family": "pretrained", "from": str(path), "max_position_embeddings": 64}
    )


def read_eval_losses(run: Path) -> list[float]:
    return [line["eval_loss"] for line in read_metrics(run) if "eval_loss" in line]


def test_it_starts_with_the_loss_of_the_model(finished_run: Path, krill_train: Any) -> None:
    assert krill_train(*STILL, f"model.from={finished_run}", "sequence_len=64") == 0
    (run,) = krill_train.runs("pretrained")
    final_loss = (read_status(finished_run) or {})["metrics"]["eval_loss"]
    assert read_eval_losses(run)[0] == pytest.approx(final_loss, rel=1e-6)
    assert read_eval_losses(finished_run)[0] == final_loss, "the validation of the finished run"
    assert final_loss < (read_status(finished_run) or {})["metrics"]["uniform"] - 0.1


def test_weights_are_loaded_in_fp32(finished_run: Path, tmp_path: Path) -> None:
    exported = AutoModelForCausalLM.from_pretrained(finished_run / "model")
    half = tmp_path / "half"
    exported.to(torch.bfloat16).save_pretrained(half)
    for path, is_fp32 in ((finished_run, True), (half, False)):
        torch.manual_seed(7)
        model: Any = build_model(config_for(path), 320, 5, 6, 7)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert model.config.use_cache is False
        assert (model.config.bos_token_id, model.generation_config.pad_token_id) == (5, 7)
        expected = AutoModelForCausalLM.from_pretrained(
            finished_run / "model" if is_fp32 else half, dtype=torch.float32
        )
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))
    assert count_parameters(config_for(finished_run), 320) == exported.num_parameters()


def test_the_signature_depends_on_the_content_not_the_path(
    finished_run: Path, krill_train: Any, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(finished_run / "model", elsewhere)
    for path in (finished_run, elsewhere):
        assert krill_train(*STILL, f"model.from={path}", "sequence_len=64") == 0
    config = elsewhere / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rms_norm_eps": 1e-3}))
    assert krill_train(*STILL, f"model.from={elsewhere}", "sequence_len=64") == 0
    first, second, third = ((read_status(run) or {})["signature"] for run in krill_train.runs("pretrained"))
    assert first == second != third


def test_from_of_a_run_reads_its_config_again(finished_run: Path, krill_train: Any) -> None:
    """config.yaml has the key `from`, as on the command line, and from= reads it."""
    assert krill_train(*STILL, f"model.from={finished_run}", "sequence_len=64") == 0
    (run,) = krill_train.runs("pretrained")
    assert f"from: {finished_run}" in (run / "config.yaml").read_text()
    assert app.main("train", run_task, [f"from={run}", "seed=1"]) == 0
    again = krill_train.runs("pretrained")[-1]
    assert again != run
    assert read_config(again) == read_config(run) | {"seed": 1}


def test_model_from_accepts_a_checkpoint(finished_run: Path, krill_train: Any) -> None:
    assert (
        krill_train(*STILL, f"model.from={finished_run / 'checkpoints' / 'checkpoint-2'}", "sequence_len=64")
        == 0
    )


@pytest.mark.parametrize("path", ["", "checkpoints/checkpoint-2"])
def test_another_tokenizer_is_refused_with_the_path_of_the_right_one(
    path: str, finished_run: Path, krill_train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = (*STILL, f"model.from={finished_run / path}", "sequence_len=64", "tokenizer.vocab_size=330")
    assert krill_train(*overrides) == 2
    error = capsys.readouterr().err
    assert "tokenizer=pretrained tokenizer.path=" in error
    suggested_path = error.rpartition("tokenizer.path=")[2].split()[0]
    overrides = (
        *overrides[:-1],
        "tokenizer=pretrained",
        f"tokenizer.path={suggested_path}",
        "~tokenizer.vocab_size",
    )
    assert krill_train(*[override for override in overrides if not override.startswith("~")]) == 0


@pytest.mark.parametrize(
    ("extra_overrides", "error"),
    [
        (["model.from=nowhere"], "model.from=nowhere: not the name of a run"),
        (["sequence_len=128"], "use sequence_len=64"),
    ],
)
def test_a_model_that_cannot_be_used_is_refused(
    extra_overrides: list[str],
    error: str,
    finished_run: Path,
    krill_train: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert krill_train(*STILL, f"model.from={finished_run}", "sequence_len=64", *extra_overrides) == 2
    assert error in capsys.readouterr().err


def test_a_model_without_tokenizer_must_have_the_same_vocabulary_size(
    finished_run: Path, krill_train: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    AutoModelForCausalLM.from_pretrained(finished_run / "model").save_pretrained(bare)
    overrides = (*STILL, f"model.from={bare}", "sequence_len=64")
    assert krill_train(*overrides, "tokenizer.vocab_size=319") == 2
    assert "it has 320 entries and no tokenizer in its folder" in capsys.readouterr().err
    assert krill_train(*overrides) == 0


def test_missing_weights_are_an_error(finished_run: Path, tmp_path: Path) -> None:
    incomplete = tmp_path / "lacking"
    shutil.copytree(finished_run / "model", incomplete)
    config = incomplete / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 3}))
    with pytest.raises(UsageError, match=r"lacks 9 weights"):
        build_model(config_for(incomplete), 320, 5, 6, 7)
    (incomplete / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="has no weights"):
        build_model(config_for(incomplete), 320, 5, 6, 7)
    with pytest.raises(UsageError, match="320 embeddings, the tokenizer has 321"):
        build_model(config_for(finished_run), 321, 5, 6, 7)


@pytest.mark.parametrize(
    ("model_type", "backend"), [("gpt2", "varlen"), ("gemma2", "eager"), ("gpt_neox", "varlen")]
)
def test_an_architecture_of_transformers_trains(
    model_type: str, backend: str, krill_train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["hidden_size=16", "num_hidden_layers=1", "num_attention_heads=2"]
    extra = ["num_key_value_heads=1", "head_dim=8", "intermediate_size=24"] if model_type == "gemma2" else []
    overrides = [f"model.config.{override}" for override in (*sizes, *extra)]
    assert krill_train("model=auto", f"model.model_type={model_type}", *overrides, "sequence_len=64") == 0
    assert f"attention {backend}" in capsys.readouterr().err
    (run,) = krill_train.runs(model_type)
    loaded = load_model(str(run), torch.device("cpu"))
    model, tokenizer = loaded.model, loaded.tokenizer
    assert (model.config.model_type, tokenizer.vocab_size) == (model_type, 320)


def test_an_architecture_that_leaks_is_refused_before_anything_is_written(
    krill_train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krill_train("model=auto", "model.model_type=mamba", "sequence_len=64") == 2
    assert "its state carries over from one to the next" in capsys.readouterr().err
    assert not krill_train.runs("mamba")
