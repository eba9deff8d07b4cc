"""A transformers model from configuration: every number of the architecture is right at construction."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from krill.config.schema import Model

FAMILIES: dict[str, tuple[type[Any], type[Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


def architecture(config: Model, vocab_size: int, bos_id: int, eos_id: int, pad_id: int) -> Any:
    """The transformers configuration; the vocabulary is the tokenizer's."""
    numbers = config.model_dump(exclude={"name", "family", "rope_theta"})
    numbers["head_dim"] = config.head_dim or config.hidden_size // config.num_attention_heads
    return FAMILIES[config.family][0](
        **numbers,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        vocab_size=vocab_size,
        bos_token_id=bos_id,
        eos_token_id=eos_id,
        pad_token_id=pad_id,
    )


def build(config: Model, architecture: Any, attention: str, seed: int) -> PreTrainedModel:
    """A model with random fp32 weights, the same for the same seed; `attention` is its backend."""
    torch.manual_seed(seed)
    model = FAMILIES[config.family][1](architecture)
    model.set_attn_implementation(attention)
    model.generation_config = GenerationConfig(
        bos_token_id=architecture.bos_token_id,
        eos_token_id=architecture.eos_token_id,
        pad_token_id=architecture.pad_token_id,
    )
    return model


def count_parameters(config: Model, vocab_size: int) -> int:
    """Parameters of the model, tied ones once, without allocating any."""
    with torch.device("meta"):
        model = FAMILIES[config.family][1](architecture(config, vocab_size, 0, 1, 2))
    return sum(parameter.numel() for parameter in model.parameters())
