"""Builds a transformers model from the configuration, with every number of the architecture set at construction."""

from __future__ import annotations

from functools import lru_cache
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
from krill.errors import UsageError
from krill.models.auto_model import build_auto_model
from krill.models.pretrained import build_pretrained_architecture, load_pretrained_model

MODEL_FAMILIES: dict[str, tuple[type[Any], type[Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


def build_model(
    config: ModelConfig, vocab_size: int, bos_id: int, eos_id: int, pad_id: int, attention: str = "sdpa"
) -> PreTrainedModel:
    """Builds a model with random weights from torch's generator, or with the weights of model.from.

    The cache is off: with a cache, transformers does not detect documents in position_ids, and rows would leak.

    Args:
        config: Section `model` of the configuration.
        vocab_size: Number of tokens of the tokenizer.
        bos_id: Id of the token at the beginning of a document.
        eos_id: Id of the token at the end of a document.
        pad_id: Id of the padding token.
        attention: Backend of transformers' attention interface.
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
        build = custom_code.import_custom_function(config.build)
        max_positions = config.max_position_embeddings
        model = build(vocab_size=vocab_size, max_position_embeddings=max_positions, **ids, **config.options)
        if not isinstance(model, PreTrainedModel):
            raise UsageError(
                f"model.build={config.build}: returned {type(model).__name__}; return a PreTrainedModel of "
                "transformers"
            )
        return model
    config_class, model_class = MODEL_FAMILIES[config.family]
    return model_class(config_class(vocab_size=vocab_size, **ids, **_build_config_kwargs(config)))


def _build_config_kwargs(config: TransformerConfig) -> dict[str, Any]:
    """Returns the keys of the architecture. transformers 5 ignores a rope_theta set after construction."""
    kwargs = config.model_dump(exclude={"name", "family", "rope_theta"})
    kwargs["head_dim"] = config.head_dim or config.hidden_size // config.num_attention_heads
    return kwargs | {"rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta}}


def build_meta_model(config: ModelConfig, vocab_size: int) -> PreTrainedModel:
    """Builds the model on the meta device, without weights. With model.from, it has that model's vocabulary.

    The last model of a family of krill is built once for all estimates, which may convert its dtype.
    """
    if isinstance(config, TransformerConfig):
        return _build_last_meta_model(config, vocab_size)
    return _build_on_meta(config, vocab_size)


def _build_on_meta(config: ModelConfig, vocab_size: int) -> PreTrainedModel:
    with torch.device("meta"):
        if isinstance(config, PretrainedModelConfig):
            return build_pretrained_architecture(config)
        return build_model(config, vocab_size, bos_id=0, eos_id=1, pad_id=2, attention="eager")


_build_last_meta_model = lru_cache(maxsize=1)(_build_on_meta)


def count_parameters(config: ModelConfig, vocab_size: int) -> int:
    """Counts the parameters of the model, tied ones once, without allocating any."""
    return sum(parameter.numel() for parameter in build_meta_model(config, vocab_size).parameters())
