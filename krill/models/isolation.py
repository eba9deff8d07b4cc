"""Which attention backends compute an architecture exactly and keep the documents of a row apart.

Found by a forward pass on the meta device (`krill.models.attention_calls`), whatever the architecture calls its keys.
What cannot isolate is refused before anything is prepared.
"""

from __future__ import annotations

import inspect

import torch
from transformers import PreTrainedModel

from krill.config.schema import Model, Transformer
from krill.errors import UsageError
from krill.models.attention_calls import Attention, attention_of
from krill.models.build import skeleton

KINDS = {"full_attention", "sliding_attention"}
"""Kinds of layers that a boundary and a window describe; the others are known to their masks only."""


def isolating(config: Model, asked: str, chosen: str, sequence_len: int) -> tuple[str, str | None]:
    """The backend for `config`: `chosen`, or with `asked` = auto another one that can, and why it is another.

    Raises:
        UsageError: the architecture carries something from one document to the next whatever computes it, or the
            backend that was asked for cannot compute it.
    """
    if isinstance(config, Transformer):
        return chosen, None
    model = skeleton(config, vocab_size=64).to(torch.bfloat16)  # some kernels are for bf16 only
    attention = _attention(model, config)
    candidates = (chosen, "sdpa", "eager") if asked == "auto" else (chosen,)
    objections = {backend: objection(backend, model, attention, sequence_len) for backend in candidates}
    able = [backend for backend, wrong in objections.items() if wrong is None]
    if not able:
        told = "; ".join(f"{backend}: {wrong}" for backend, wrong in objections.items())
        other = "hardware.attention=auto, or " if asked != "auto" else ""
        raise UsageError(f"model.family={config.family} ({_type(model)}): {told}. Write {other}another model")
    return able[0], objections[chosen]


def _attention(model: PreTrainedModel, config: Model) -> Attention:
    """How `model` attends. Raises UsageError where not every layer attends by transformers' interface alone."""
    what = f"model.family={config.family} ({_type(model)})"
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
        attention = attention_of(model)
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


def objection(backend: str, model: PreTrainedModel, attention: Attention, sequence_len: int) -> str | None:
    """Why `backend` would compute something else than the architecture, or leak; None: it does neither."""
    features = sorted({name for call in attention.calls for name in call.features})
    windows = [call.window for call in attention.calls if call.window is not None]
    if backend == "varlen":
        kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
        if features:
            return f"has no {', '.join(features)}"
        if not all(call.told for call in attention.calls):
            return "the documents' boundaries do not reach every layer"
        if windows and min(windows) < sequence_len:
            return f"has no sliding window ({min(windows)} tokens of {sequence_len})"
        if any(call.dropout for call in attention.calls):
            return "has no dropout; set the attention's dropout to 0 to use it"
        if kinds - KINDS:
            return f"has no {', '.join(sorted(kinds - KINDS))}"
        if any(call.key_width != call.value_width for call in attention.calls):
            return "wants keys as wide as values"
        return None
    if not attention.masked:
        return "position_ids do not reach its mask, documents would see each other"
    if backend == "sdpa" and (features or not model._supports_sdpa):
        return f"has no {', '.join(features) or 'such attention in transformers'}"
    return None


def _type(model: PreTrainedModel) -> str:
    return str(model.config.model_type)
