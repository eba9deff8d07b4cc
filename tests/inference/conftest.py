"""A byte tokenizer and an untrained model with a context of 64 tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from stores import make_byte_tokenizer

from krill.config.schema import TransformerConfig
from krill.models.build import build_model
from krill.tokenizer.artifact import TokenizerFolder


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TokenizerFolder:
    """Has one token per byte, so that a Hangul syllable is three tokens; bos 0, eos 1, pad 2."""
    return make_byte_tokenizer(tmp_path_factory.mktemp("tokenizers") / "bytes")


@pytest.fixture(scope="session")
def model(tokenizer: TokenizerFolder) -> Any:
    """Has random weights that are large enough to make one token clearly the most likely."""
    torch.manual_seed(3)
    config = TransformerConfig(
        name="tiny", family="llama", hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=64, rope_theta=1e4,
        rms_norm_eps=1e-6, tie_word_embeddings=False, initializer_range=0.3,
    )  # fmt: skip
    return build_model(config, tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)


@pytest.fixture(scope="session")
def model_folder(model: Any, tokenizer: TokenizerFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model and its tokenizer, as a finished run writes it."""
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    tokenizer.copy_to(folder, 64)
    return folder
