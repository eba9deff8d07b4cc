"""Small untrained models of both families with a tokenizer, in the folders of finished runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stores import make_tokenizer

from krill.config.schema import TransformerConfig
from krill.models.build import build_model
from krill.tokenizer.artifact import TokenizerFolder

MakeRun = Callable[..., Path]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TokenizerFolder:
    return make_tokenizer(
        tmp_path_factory.mktemp("tokenizers") / "bpe",
        special_tokens=["<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<think>", "</think>"],
        chat_template="chatml",
    )


@pytest.fixture
def make_run(tmp_path: Path, tokenizer: TokenizerFolder) -> MakeRun:
    """make_run("llama", tie_word_embeddings=True, …) writes the folder of a finished run and returns it."""

    def make(family: str = "llama", saved_tokenizer: TokenizerFolder = tokenizer, **keys: Any) -> Path:
        torch.manual_seed(3)
        torch.set_num_threads(1)
        shape = {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "rope_theta": 5e4,
            "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "initializer_range": 0.3,
        }  # fmt: skip
        rows = keys.pop("rows", saved_tokenizer.vocab_size)
        config = TransformerConfig.model_validate({"name": "tiny", "family": family, **shape, **keys})
        ids = (saved_tokenizer.bos_id, saved_tokenizer.eos_id, saved_tokenizer.pad_id)
        model = build_model(config, rows, *ids)
        for name, parameter in model.named_parameters():
            if "norm" in name:  # a norm of ones would hide one that is in the wrong place
                parameter.data.uniform_(0.5, 1.5)
        run = tmp_path / f"run-{family}"
        model.save_pretrained(run / "model")
        saved_tokenizer.copy_to(run / "model", 64)
        (run / "status.json").write_text(json.dumps({"state": "finished", "name": family, "signature": "a"}))
        return run

    return make
