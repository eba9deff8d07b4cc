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

from krill.config import custom_code
from krill.config.schema import (
    AutoModelConfig,
    CustomModelConfig,
    ModelConfig,
    PretrainedModelConfig,
    TransformerConfig,
)
from krill.models.auto_model import build_auto_model
from krill.models.pretrained import build_pretrained_architecture, load_pretrained_model

MODEL_FAMILIES: dict[str, tuple[type[Any], type[Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


def build_model(
    config: ModelConfig, vocab_size: int, bos_id: int, eos_id: int, pad_id: int, attention: str = "sdpa"
) -> PreTrainedModel:
    """A model with random weights from torch's generator, or those of model.from; the vocabulary is the tokenizer's.

    `attention`: the backend of transformers' attention interface. The cache is off: with one, transformers does
    not look for documents in position_ids, and rows would leak.
    """
    ids = {"bos_token_id": bos_id, "eos_token_id": eos_id, "pad_token_id": pad_id}
    if isinstance(config, PretrainedModelConfig):
        model = load_pretrained_model(config, vocab_size)
        for key, value in ids.items():
            setattr(model.config, key, value)
    else:
        model = _build_random_model(config, vocab_size, ids)
    model.set_attn_implementation(attention)
    model.config.use_cache = False
    model.generation_config = GenerationConfig(**ids)
    return model


def _build_random_model(
    config: TransformerConfig | AutoModelConfig | CustomModelConfig, vocab_size: int, ids: dict[str, int]
) -> Any:
    if isinstance(config, AutoModelConfig):
        return build_auto_model(config, vocab_size, ids)
    if isinstance(config, CustomModelConfig):
        longest = config.max_position_embeddings
        make = custom_code.import_custom_function(config.build)
        return make(vocab_size=vocab_size, max_position_embeddings=longest, **ids, **config.options)
    numbers, make = MODEL_FAMILIES[config.family]
    return make(numbers(vocab_size=vocab_size, **ids, **_build_config_kwargs(config)))


def _build_config_kwargs(config: TransformerConfig) -> dict[str, Any]:
    """The keys of the architecture. rope_theta set after construction would be ignored by transformers 5."""
    numbers = config.model_dump(exclude={"name", "family", "rope_theta"})
    numbers["head_dim"] = config.head_dim or config.hidden_size // config.num_attention_heads
    return numbers | {"rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta}}


def build_meta_model(config: ModelConfig, vocab_size: int) -> PreTrainedModel:
    """The model on the meta device: shapes, and no weights. Of model.from it has that model's own vocabulary."""
    with torch.device("meta"):
        if isinstance(config, PretrainedModelConfig):
            return build_pretrained_architecture(config)
        return build_model(config, vocab_size, bos_id=0, eos_id=1, pad_id=2, attention="eager")


def count_parameters(config: ModelConfig, vocab_size: int) -> int:
    """Parameters of the model, tied ones once, without allocating any."""
    return sum(parameter.numel() for parameter in build_meta_model(config, vocab_size).parameters())
