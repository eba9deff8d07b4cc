"""Which attention backends compute an architecture exactly and keep the documents of a row apart.

Found by a forward pass on the meta device (`krill.models.attention_probe`), whatever the architecture calls its keys.
What cannot isolate is refused before anything is prepared.
"""

from __future__ import annotations

import inspect

import torch
from transformers import PreTrainedModel

from krill.config.schema import ModelConfig, TransformerConfig
from krill.errors import UsageError
from krill.models.attention_probe import AttentionProfile, probe_attention
from krill.models.build import build_meta_model

SUPPORTED_LAYER_TYPES = {"full_attention", "sliding_attention"}
"""Kinds of layers that a boundary and a window describe; the others are known to their masks only."""

LENGTH_BACKEND_FEATURES: dict[str, set[str]] = {
    "varlen": set(),
    "flash_attention_2": {"softcapping"},
    "flash_attention_3": {"softcapping"},
}
"""Backends that are told the lengths of documents, and what each can do to scores."""

MAX_FLASH_HEAD_DIM = 256
"""Of a head, in Flash Attention."""

NO_DROPOUT_MESSAGE = "has no dropout; set the attention's dropout to 0 to use it"


def select_isolating_backend(
    config: ModelConfig, asked: str, chosen: str, device: str
) -> tuple[str, str | None]:
    """The backend for `config`: `chosen`, or with `asked` = auto another one that can, and why it is another.

    Raises:
        UsageError: the architecture carries something from one document to the next whatever computes it, or the
            backend that was asked for cannot compute it.
    """
    if isinstance(config, TransformerConfig):
        return chosen, None
    model = build_meta_model(config, vocab_size=64).to(torch.bfloat16)  # some kernels are for bf16 only
    attention = _probe_or_raise(model, config)
    candidates = (chosen, "sdpa", "eager") if asked == "auto" else (chosen,)
    objections = {backend: find_objection(backend, model, attention, device) for backend in candidates}
    able = [backend for backend, wrong in objections.items() if wrong is None]
    if not able:
        told = "; ".join(f"{backend}: {wrong}" for backend, wrong in objections.items())
        other = "hardware.attention=auto, or " if asked != "auto" else ""
        raise UsageError(
            f"model.family={config.family} ({_get_model_type(model)}): {told}. Write {other}another model"
        )
    return able[0], objections[chosen]


def _probe_or_raise(model: PreTrainedModel, config: ModelConfig) -> AttentionProfile:
    """How `model` attends. Raises UsageError where not every layer attends by transformers' interface alone."""
    what = f"model.family={config.family} ({_get_model_type(model)})"
    refusal = f"{what} cannot keep the documents of a row apart: {{}}. Write another model.model_type"
    if model.config.is_encoder_decoder:
        raise UsageError(refusal.format("it has an encoder"))
    if model._is_stateful:
        raise UsageError(refusal.format("its state runs on from one to the next"))
    if not model._supports_attention_backend:
        raise UsageError(refusal.format("its attention does not go through transformers' AttentionInterface"))
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise UsageError(refusal.format("it takes no position_ids"))
    try:
        attention = probe_attention(model)
    except Exception as error:  # whatever its code raises
        said = " ".join(str(error).split())
        raise UsageError(
            refusal.format(f"a forward pass failed with {type(error).__name__}: {said}")
        ) from error
    layers = model.config.get_text_config().num_hidden_layers
    if len(attention.calls) != layers:
        raise UsageError(refusal.format(f"{len(attention.calls)} of its {layers} layers attend"))
    if not all(call.causal for call in attention.calls):
        raise UsageError(
            f"{what}: a token sees those after it; write model.config.is_decoder=true where it has that"
        )
    return attention


def find_objection(
    backend: str, model: PreTrainedModel, attention: AttentionProfile, device: str
) -> str | None:
    """Why `backend` would compute something else than the architecture, or leak; None: it does neither."""
    if backend in LENGTH_BACKEND_FEATURES:
        return _find_length_objection(backend, model, attention, device)
    features = {name for call in attention.calls for name in call.features}
    if not attention.has_document_mask:
        return "position_ids do not reach its mask, documents would see each other"
    if backend == "sdpa" and (features or not model._supports_sdpa):
        return f"has no {_join_names(features) or 'such attention in transformers'}"
    if backend == "flex":
        lacking = features - {"softcapping", "position bias"}
        if lacking or not model._supports_flex_attn:
            return f"has no {_join_names(lacking) or 'such attention in transformers'}"
        if any(call.dropout for call in attention.calls):
            return NO_DROPOUT_MESSAGE
    return None


def _find_length_objection(
    backend: str, model: PreTrainedModel, attention: AttentionProfile, device: str
) -> str | None:
    """The objection to a backend that is told the lengths of documents and sees no mask."""
    calls = attention.calls
    lacking = {name for call in calls for name in call.features} - LENGTH_BACKEND_FEATURES[backend]
    if lacking:
        return f"has no {_join_names(lacking)}"
    if not all(call.has_boundaries for call in calls):
        return "the documents' boundaries do not reach every layer"
    kinds = list(getattr(model.config.get_text_config(), "layer_types", None) or ())
    if set(kinds) - SUPPORTED_LAYER_TYPES:
        return f"has no {_join_names(set(kinds) - SUPPORTED_LAYER_TYPES)}"
    if kinds.count("sliding_attention") > sum(call.window is not None for call in calls):
        return "the sliding window does not reach every layer"
    drops = backend == "flash_attention_2" or (backend == "varlen" and device == "cpu")
    if any(call.dropout for call in calls) and not drops:
        return NO_DROPOUT_MESSAGE
    if any(call.key_width != call.value_width for call in calls):
        return "wants keys as wide as values"
    widest = max(call.key_width for call in calls)
    if device == "cuda" and widest > MAX_FLASH_HEAD_DIM:
        return f"has heads of {MAX_FLASH_HEAD_DIM} at most ({widest})"
    return None


def _join_names(names: set[str]) -> str:
    return ", ".join(sorted(names))


def _get_model_type(model: PreTrainedModel) -> str:
    return str(model.config.model_type)
