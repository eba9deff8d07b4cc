"""Builds model.family=auto: any causal architecture of transformers, with the keys of its configuration class."""

from __future__ import annotations

import dataclasses
import difflib

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from krill.config.schema import AutoModelConfig
from krill.config.schema.model import MAX_LAYERS
from krill.errors import UsageError

RESERVED_KEYS = {
    "vocab_size": "it follows the tokenizer", "bos_token_id": "it follows the tokenizer",
    "eos_token_id": "it follows the tokenizer", "pad_token_id": "it follows the tokenizer",
    "max_position_embeddings": "set model.max_position_embeddings=…", "use_cache": "it is off during training",
    "dtype": "weights are fp32; set hardware.precision=…",
}  # fmt: skip
"""Keys that krill sets, and what to do instead."""


def build_auto_model(config: AutoModelConfig, vocab_size: int, ids: dict[str, int]) -> PreTrainedModel:
    """Builds the model with random fp32 weights.

    Args:
        config: Section `model` of the configuration.
        vocab_size: Number of tokens.
        ids: bos_token_id, eos_token_id and pad_token_id.

    Raises:
        UsageError: the architecture is unknown, it does not have a key, or it does not accept a value.
    """
    overrides = {"vocab_size": vocab_size, "max_position_embeddings": config.max_position_embeddings, **ids}
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            _build_config(config, overrides), dtype=torch.float32, trust_remote_code=False
        )
    except (StrictDataclassError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        message = " ".join(str(error).split())
        raise UsageError(
            f"model.config: transformers cannot build {config.model_type} with these keys ({message})"
        ) from error
    return model


def _build_config(config: AutoModelConfig, overrides: dict[str, int]) -> PreTrainedConfig:
    """Builds the configuration of transformers, with the `overrides` whose keys its class has."""
    config_class = _get_config_class(config.model_type)
    known = _list_config_keys(config_class)
    errors = [
        f"model.config.{key}: {_explain_rejected_key(key, config_class, known)}"
        for key in config.config
        if not _can_set(key, config_class, known)
    ]
    if errors:
        raise UsageError("\n".join(errors))
    values = {key: value for key, value in overrides.items() if key in known} | config.config
    built = config_class(**values)
    layers = getattr(built.get_text_config(), "num_hidden_layers", 0)
    if isinstance(layers, int) and layers > MAX_LAYERS:
        raise UsageError(
            f"model.config: {layers} layers are more than krill builds; use at most {MAX_LAYERS}"
        )
    return built


def _get_config_class(model_type: str) -> type[PreTrainedConfig]:
    known = [name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name in CONFIG_MAPPING]
    if model_type not in known:
        near = difflib.get_close_matches(model_type, known, n=3, cutoff=0.5)
        raise UsageError(
            f"model.model_type={model_type}: transformers has no causal language model of that name"
            + (
                f"; similar names: {', '.join(near)}"
                if near
                else "; for example gpt2, gpt_neox, qwen2, mistral"
            )
        )
    config_class: type[PreTrainedConfig] = CONFIG_MAPPING[model_type]
    return config_class


def _list_config_keys(config_class: type[PreTrainedConfig]) -> set[str]:
    """Lists the keys of the class, by its names and by those that transformers shares between classes."""
    own = {field.name for field in dataclasses.fields(config_class) if not field.name.startswith("_")}
    return own | set(config_class.attribute_map)


def _can_set(key: str, config_class: type[PreTrainedConfig], known: set[str]) -> bool:
    return key in known and _get_shared_name(key, config_class) not in RESERVED_KEYS


def _explain_rejected_key(key: str, config_class: type[PreTrainedConfig], known: set[str]) -> str:
    if key in known:
        return f"leave it out; {RESERVED_KEYS[_get_shared_name(key, config_class)]}"
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"{config_class.__name__} of transformers has no such key." + (
        f" Did you mean {near[0]}?" if near else ""
    )


def _get_shared_name(key: str, config_class: type[PreTrainedConfig]) -> str:
    """Returns the name shared between classes: n_positions of GPT-2 is max_position_embeddings elsewhere."""
    return {own: shared for shared, own in config_class.attribute_map.items()}.get(key, key)
