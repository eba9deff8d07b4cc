"""A byte tokenizer and an untrained model with a context of 64 tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel
from tokenizers.processors import TemplateProcessing

from krill.config.schema import TransformerConfig
from krill.models.build import build_model
from krill.tokenizer.artifact import TokenizerFolder, load_tokenizer

SPECIAL_TOKENS = ["<|bos|>", "<|eos|>", "<|pad|>"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TokenizerFolder:
    """Has one token per byte, so that a Hangul syllable is three tokens; bos 0, eos 1, pad 2."""
    folder = tmp_path_factory.mktemp("bytes")
    names = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({name: index for index, name in enumerate(names)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = ByteLevel()
    backend.add_special_tokens(SPECIAL_TOKENS)
    backend.post_processor = TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 0)])
    backend.save(str(folder / "tokenizer.json"))
    roles = dict(zip(("bos_token", "eos_token", "pad_token"), SPECIAL_TOKENS, strict=True))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **roles})
    )
    return load_tokenizer(folder)


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
    tokenizer.copy_to(folder)
    return folder
