"""The folder of Hugging Face: it loads without a warning and gives the logits and the ids of the source."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from krill.export.convert import resolve_output, write_export
from krill.export.source import ExportSource
from krill.inference.load import load_model
from krill.tokenizer.artifact import TokenizerFolder, load_tokenizer

MakeRun = Callable[..., Path]
TEXT = "Return the words. 한국어 문장은 ㅋㅋㅋ 12345 <think>"


@pytest.fixture
def transformers_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> pytest.LogCaptureFixture:
    """What transformers logs."""
    logger = transformers_logging.get_logger("transformers")
    monkeypatch.setattr(logger, "propagate", True)
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_warning()
    yield caplog
    transformers_logging.set_verbosity(level)


def export(run: Path, dtype: str = "f32") -> Path:
    folder = run.parent / f"exported-{dtype}"
    source = ExportSource.open(str(run), None)
    write_export(source, "hf", dtype, resolve_output(source, "hf", dtype, str(folder)))
    return folder


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_it_loads_without_a_warning_and_gives_the_same_logits(
    make_run: MakeRun,
    tokenizer: TokenizerFolder,
    family: str,
    transformers_log: pytest.LogCaptureFixture,
) -> None:
    run = make_run(family, tie_word_embeddings=family == "qwen3")
    folder = export(run)
    transformers_log.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        loaded, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        auto = AutoTokenizer.from_pretrained(folder)
    assert [record.message for record in transformers_log.records if record.levelno >= logging.WARNING] == []
    assert not any(info.values())
    ids = auto(TEXT).input_ids
    assert ids == tokenizer.backend.encode(TEXT).ids
    source = AutoModelForCausalLM.from_pretrained(run / "model")
    batch = torch.tensor([ids])
    assert torch.equal(loaded(batch).logits, source(batch).logits)
    assert (loaded.generation_config.eos_token_id, auto.eos_token_id) == (1, 1)
    assert auto.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False).endswith(
        "a<|im_end|>\n"
    )
    assert loaded.config.use_cache


@pytest.mark.parametrize(("dtype", "name"), [("bf16", "bfloat16"), ("f16", "float16"), ("f32", "float32")])
def test_dtypes(make_run: MakeRun, dtype: str, name: str) -> None:
    run = make_run()
    folder = export(run, dtype)
    weights, source = load_file(folder / "model.safetensors"), load_file(run / "model" / "model.safetensors")
    expected = {key: value.to(getattr(torch, name)) for key, value in source.items()}
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], expected[key]) for key in expected)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert (config["dtype"], config["torch_dtype"], config["rope_theta"]) == (name, name, 5e4)


@pytest.mark.parametrize("eos", [None, [1, 5]])
def test_the_settings_of_generation_are_kept(make_run: MakeRun, eos: list[int] | None) -> None:
    run = make_run()
    settings: dict[str, Any] = {
        "temperature": 0.7,
        "top_k": 20,
    }  # without do_sample, transformers loads but does not save them
    if eos:
        settings["eos_token_id"] = eos
    (run / "model" / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    written = json.loads((export(run) / "generation_config.json").read_text(encoding="utf-8"))
    assert {key: written[key] for key in settings} == settings
    assert (written["bos_token_id"], written["eos_token_id"], written["pad_token_id"]) == (0, eos or 1, 2)


def test_transformers_4_reads_the_settings_of_the_tokenizer(
    make_run: MakeRun, tokenizer: TokenizerFolder
) -> None:
    run = make_run()
    own = json.loads((run / "model" / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings = json.loads((export(run) / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert isinstance(own["extra_special_tokens"], list)
    assert settings["additional_special_tokens"] == own["extra_special_tokens"]
    assert "extra_special_tokens" not in settings
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_krill_reads_it_with_the_signature_of_its_tokenizer(
    make_run: MakeRun, tokenizer: TokenizerFolder
) -> None:
    folder = export(make_run())
    loaded = load_model(str(folder), torch.device("cpu")).tokenizer
    assert loaded.signature == tokenizer.signature
    assert load_tokenizer(folder).folder == folder


def test_a_checkpoint_gets_the_tokenizer_of_its_run(make_run: MakeRun, tokenizer: TokenizerFolder) -> None:
    run = make_run()
    checkpoint = run / "checkpoints" / "checkpoint-10"
    checkpoint.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (run / "model" / name).rename(checkpoint / name)
    status = {
        "state": "running",
        "name": "a",
        "signature": "a",
        "tokenizer": {"folder": str(tokenizer.folder)},
    }
    (run / "status.json").write_text(json.dumps(status), encoding="utf-8")
    source = ExportSource.open(str(checkpoint), None)
    assert source.name == "a"
    folder = run.parent / "out"
    write_export(source, "hf", "f32", folder)
    loaded = AutoTokenizer.from_pretrained(folder)
    assert loaded(TEXT).input_ids == tokenizer.backend.encode(TEXT).ids
    assert loaded.model_max_length == 64
    assert AutoModelForCausalLM.from_pretrained(folder).generation_config.eos_token_id == 1
