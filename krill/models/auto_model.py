"""model.family=auto: any causal architecture of transformers, under the keys of its own configuration class."""

from __future__ import annotations

import dataclasses
import difflib

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from krill.config.schema import AutoModelConfig
from krill.errors import UsageError

RESERVED_KEYS = {
    "vocab_size": "it follows the tokenizer", "bos_token_id": "it follows the tokenizer",
    "eos_token_id": "it follows the tokenizer", "pad_token_id": "it follows the tokenizer",
    "max_position_embeddings": "write model.max_position_embeddings=…", "use_cache": "it is off while training",
    "dtype": "weights are fp32; write hardware.precision=…",
}  # fmt: skip
"""Keys that krill sets itself, and what to do instead."""


def build_auto_model(config: AutoModelConfig, vocab_size: int, ids: dict[str, int]) -> PreTrainedModel:
    """The model with random fp32 weights; `ids`: bos_token_id, eos_token_id, pad_token_id.

    Raises:
        UsageError: no such architecture, no such key of it, or values that it refuses.
    """
    ours = {"vocab_size": vocab_size, "max_position_embeddings": config.max_position_embeddings, **ids}
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            _build_config(config, ours), dtype=torch.float32
        )
    except (StrictDataclassError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        said = " ".join(str(error).split())
        raise UsageError(
            f"model.config: transformers cannot build {config.model_type} with these keys ({said})"
        ) from error
    return model


def _build_config(config: AutoModelConfig, ours: dict[str, int]) -> PreTrainedConfig:
    """The class's own configuration, `ours` over it as far as the class has such keys."""
    kind = _get_config_class(config.model_type)
    known = _list_config_keys(kind)
    wrong = [
        f"model.config.{key}: {_explain_rejected_key(key, kind, known)}"
        for key in config.config
        if not _can_set(key, kind, known)
    ]
    if wrong:
        raise UsageError("\n".join(wrong))
    values = {key: value for key, value in ours.items() if key in known} | config.config
    return kind(**values)


def _get_config_class(model_type: str) -> type[PreTrainedConfig]:
    known = [name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name in CONFIG_MAPPING]
    if model_type not in known:
        near = difflib.get_close_matches(model_type, known, n=3, cutoff=0.5)
        raise UsageError(
            f"model.model_type={model_type}: transformers has no causal language model of that name"
            + (f"; near are {', '.join(near)}" if near else "; gpt2, gpt_neox, qwen2, mistral are some")
        )
    kind: type[PreTrainedConfig] = CONFIG_MAPPING[model_type]
    return kind


def _list_config_keys(kind: type[PreTrainedConfig]) -> set[str]:
    """The class's keys, by its own names and by those that transformers shares between classes."""
    own = {field.name for field in dataclasses.fields(kind) if not field.name.startswith("_")}
    return own | set(kind.attribute_map)


def _can_set(key: str, kind: type[PreTrainedConfig], known: set[str]) -> bool:
    return key in known and _get_shared_name(key, kind) not in RESERVED_KEYS


def _explain_rejected_key(key: str, kind: type[PreTrainedConfig], known: set[str]) -> str:
    if key in known:
        return f"leave it out; {RESERVED_KEYS[_get_shared_name(key, kind)]}"
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"{kind.__name__} of transformers has no such key." + (f" Did you mean {near[0]}?" if near else "")


def _get_shared_name(key: str, kind: type[PreTrainedConfig]) -> str:
    """n_positions of GPT-2 is max_position_embeddings elsewhere."""
    return {own: shared for shared, own in kind.attribute_map.items()}.get(key, key)
