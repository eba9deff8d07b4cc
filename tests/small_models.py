"""A small untrained model for tests that use one without training it."""

from __future__ import annotations

from typing import Any

import torch

from krill.config.schema import TransformerConfig
from krill.models.build import build_model
from krill.tokenizer.artifact import TokenizerFolder


def make_small_model(tokenizer: TokenizerFolder, initializer_range: float = 0.3, seed: int = 3) -> Any:
    """Returns a model with a context of 64 tokens, by default with weights so large that its choices are clear."""
    torch.manual_seed(seed)
    config = TransformerConfig(
        name="tiny", family="llama", hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=64, rope_theta=1e4,
        rms_norm_eps=1e-6, tie_word_embeddings=False, initializer_range=initializer_range,
    )  # fmt: skip
    return build_model(config, tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
