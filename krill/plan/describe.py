"""Describes the model of a configuration: by arithmetic if it is a Llama, Qwen3 or GPT-2, else on the meta device."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from krill.config.schema import AutoModelConfig, CustomModelConfig, ModelConfig, TransformerConfig
from krill.errors import UsageError
from krill.plan.architecture import (
    GPT2_DEFAULTS,
    GPT2_NAMES,
    GPT2_UNUSED_KEYS,
    Architecture,
    GatedArchitecture,
    GPT2Architecture,
)


def describe_architecture(config: ModelConfig, vocab_size: int) -> Architecture:
    """Returns the model that `config` builds with `vocab_size` tokens.

    Raises UsageError for a model whose build function fails on the meta device.
    """
    if isinstance(config, TransformerConfig):
        return _describe_gated(config, vocab_size)
    if isinstance(config, AutoModelConfig) and (keys := _read_gpt2_keys(config)):
        return GPT2Architecture(keys, config.max_position_embeddings, vocab_size)
    from krill.plan.meta_architecture import MetaArchitecture  # imports torch

    try:
        return MetaArchitecture(config, vocab_size)
    except UsageError:
        raise
    except Exception as error:
        if not isinstance(config, CustomModelConfig):
            raise
        raise UsageError(
            f"model.build={config.build}: cannot be planned, it fails on the meta device ({error}); build every "
            "tensor with torch functions and read none of their values while building"
        ) from error


@lru_cache(maxsize=256)
def _describe_gated(config: TransformerConfig, vocab_size: int) -> GatedArchitecture:
    return GatedArchitecture(config, vocab_size)


def _read_gpt2_keys(config: AutoModelConfig) -> dict[str, Any] | None:
    """Returns the keys of a GPT-2; None for another architecture, or one with keys that are not modelled here."""
    if config.model_type != "gpt2":
        return None
    given = {GPT2_NAMES.get(key, key): value for key, value in config.config.items()}
    if given.keys() - GPT2_DEFAULTS.keys() - GPT2_UNUSED_KEYS:
        return None
    keys = GPT2_DEFAULTS | given
    is_plain = keys["tie_word_embeddings"] is True and not keys["add_cross_attention"]
    return keys if is_plain and keys["activation_function"] == "gelu_new" else None
