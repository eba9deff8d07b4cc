"""Selects an attention backend that computes an architecture exactly and isolates the documents of a row.

The requirements are determined by a forward pass on the meta device (`krill.models.attention_probe`), independently
of the names of the architecture's keys. An architecture that cannot isolate documents is rejected before any data is
prepared.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch

from krill.config.schema import ModelConfig, TransformerConfig
from krill.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from krill.models.attention_probe import AttentionProfile

SUPPORTED_LAYER_TYPES = {"full_attention", "sliding_attention"}
"""Layer types that boundaries and a window describe completely; others are described by their masks only."""

LENGTH_BACKEND_FEATURES: dict[str, set[str]] = {
    "varlen": set(),
    "flash_attention_2": {"softcapping"},
    "flash_attention_3": set(),
    "flash_attention_4": set(),
}
"""Backends that receive the lengths of documents, and the score features that each supports."""

MAX_FLASH_HEAD_DIM = {
    "varlen": 256,
    "flash_attention_2": 256,
    "flash_attention_3": 256,
    "flash_attention_4": 128,
}
"""The largest width of a head on CUDA."""

REPLACEMENTS = ("flash_attention_3", "flash_attention_4")
"""Backends whose kernels replace those of varlen, which computes what they do not support."""

ARCHITECTURE_KEYS = {"auto": "model.model_type", "pretrained": "model.from", "custom": "model.build"}
"""model.family → the key that decides the architecture."""

NO_DROPOUT_MESSAGE = "does not support dropout; set the attention dropout to 0 to use it"


def select_isolating_backend(
    config: ModelConfig, requested: str, preferred: str, device: str
) -> tuple[str, str | None]:
    """Selects the attention backend for a model.

    Args:
        config: Section `model` of the configuration.
        requested: Value of hardware.attention; with auto, other backends are considered.
        preferred: The backend to use if it supports the model.
        device: cpu or cuda.

    Returns:
        The backend, and the objection to `preferred` if it is another one.

    Raises:
        UsageError: the architecture does not isolate documents with any backend, or the requested one does not
            support it.
    """
    if isinstance(config, TransformerConfig) and preferred != "flash_attention_4":
        return preferred, None  # all others compute it
    from krill.models.build import build_meta_model  # not needed for most runs, and expensive

    model = build_meta_model(config, vocab_size=64).to(torch.bfloat16)  # some kernels support bf16 only
    attention = _probe_or_raise(model, config)
    fallbacks = ("varlen", "sdpa", "eager") if preferred in REPLACEMENTS else ("sdpa", "eager")
    candidates = (preferred, *fallbacks) if requested == "auto" else (preferred,)
    objections = {backend: find_objection(backend, model, attention, device) for backend in candidates}
    supported = [backend for backend, objection in objections.items() if objection is None]
    if not supported:
        reasons = "; ".join(f"{backend}: {objection}" for backend, objection in objections.items())
        alternative = "hardware.attention=auto, or " if requested != "auto" else ""
        raise UsageError(
            f"model.family={config.family} ({_get_model_type(model)}): {reasons}. Use {alternative}another model"
        )
    return supported[0], objections[preferred]


def _probe_or_raise(model: PreTrainedModel, config: ModelConfig) -> AttentionProfile:
    """Probes `model`; raises UsageError unless every layer attends through transformers' interface only."""
    from krill.models.attention_probe import probe_attention

    name = f"model.family={config.family} ({_get_model_type(model)})"
    key = ARCHITECTURE_KEYS.get(config.family, "model.family")
    message = f"{name} cannot isolate the documents of a row: {{}}. Use another {key}"
    if model.config.is_encoder_decoder:
        raise UsageError(message.format("it has an encoder"))
    if model._is_stateful:
        raise UsageError(message.format("its state carries over from one to the next"))
    if not model._supports_attention_backend:
        raise UsageError(message.format("its attention does not go through transformers' AttentionInterface"))
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise UsageError(message.format("it does not accept position_ids"))
    try:
        attention = probe_attention(model)
    except Exception as error:  # any error of its code
        text = " ".join(str(error).split())
        raise UsageError(
            message.format(f"a forward pass failed with {type(error).__name__}: {text}")
        ) from error
    layers = model.config.get_text_config().num_hidden_layers
    if len(attention.calls) != layers:
        raise UsageError(message.format(f"{len(attention.calls)} of its {layers} layers attend"))
    if not all(call.causal for call in attention.calls):
        raise UsageError(
            f"{name}: tokens attend to later ones; set model.config.is_decoder=true if the model has this key"
            if config.family == "auto"
            else f"{name}: tokens attend to later ones; use another {key}"
        )
    return attention


def find_objection(
    backend: str, model: PreTrainedModel, attention: AttentionProfile, device: str
) -> str | None:
    """Returns why `backend` would leak or not compute the architecture exactly, or None if it would do neither."""
    if backend in LENGTH_BACKEND_FEATURES:
        return _find_length_objection(backend, model, attention, device)
    features = {name for call in attention.calls for name in call.features}
    if not attention.has_document_mask:
        return "position_ids do not reach its mask, so documents would attend to each other"
    if backend == "sdpa" and (features or not model._supports_sdpa):
        return f"does not support {_join_names(features) or 'this architecture in transformers'}"
    if backend == "flex":
        unsupported = features - {"softcapping", "position bias"}
        if unsupported or not model._supports_flex_attn:
            return f"does not support {_join_names(unsupported) or 'this architecture in transformers'}"
        if any(call.dropout for call in attention.calls):
            return NO_DROPOUT_MESSAGE
    return None


def _find_length_objection(
    backend: str, model: PreTrainedModel, attention: AttentionProfile, device: str
) -> str | None:
    """Returns the objection to a backend that receives the lengths of documents and no mask, or None."""
    calls = attention.calls
    unsupported = {name for call in calls for name in call.features} - LENGTH_BACKEND_FEATURES[backend]
    if unsupported:
        return f"does not support {_join_names(unsupported)}"
    if not all(call.has_boundaries for call in calls):
        return "the document boundaries do not reach every layer"
    layer_types = list(getattr(model.config.get_text_config(), "layer_types", None) or ())
    if set(layer_types) - SUPPORTED_LAYER_TYPES:
        return f"does not support {_join_names(set(layer_types) - SUPPORTED_LAYER_TYPES)}"
    if layer_types.count("sliding_attention") > sum(call.window is not None for call in calls):
        return "the sliding window does not reach every layer"
    supports_dropout = backend == "flash_attention_2" or (backend == "varlen" and device == "cpu")
    if any(call.dropout for call in calls) and not supports_dropout:
        return NO_DROPOUT_MESSAGE
    if any(call.key_width != call.value_width for call in calls):
        return "requires keys as wide as values"
    head_dim = max(call.key_width for call in calls)
    if device == "cuda" and head_dim > MAX_FLASH_HEAD_DIM[backend]:
        return f"supports heads of at most {MAX_FLASH_HEAD_DIM[backend]}, not {head_dim}"
    return None


def _join_names(names: set[str]) -> str:
    return ", ".join(sorted(names))


def _get_model_type(model: PreTrainedModel) -> str:
    return str(model.config.model_type)
