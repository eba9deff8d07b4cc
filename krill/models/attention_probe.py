"""Records how a model calls its attention function, by running it on the meta device: nothing is allocated.

An architecture may use a sliding window, softcapping, dropout or attention sinks, each under configuration keys of a
different name. They are therefore recorded in the call of the function that transformers' AttentionInterface selects.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel, masking_utils

PROBE_NAME = "krill_recorder"

SCORE_FEATURES = {"softcap": "softcapping", "s_aux": "attention sinks", "position_bias": "position bias"}
"""Arguments that change the scores beyond query, key and mask, and the feature of each."""


@dataclass(frozen=True)
class AttentionCall:
    """The attention of one layer."""

    heads: int
    """Number of query heads."""
    key_width: int
    value_width: int
    window: int | None
    """Number of tokens that a token attends to, itself included; None: all before it."""
    dropout: float
    causal: bool
    features: tuple[str, ...]
    """The features of `SCORE_FEATURES` that it uses."""
    has_boundaries: bool
    """Whether the document boundaries were passed to it."""


@dataclass(frozen=True)
class AttentionProfile:
    """The attention of a model."""

    calls: list[AttentionCall]
    """One for each layer with attention, in order."""
    has_document_mask: bool
    """Whether transformers detects documents in position_ids when it builds the masks of sdpa and eager."""


def probe_attention(model: PreTrainedModel, rows: int = 1, tokens: int = 16) -> AttentionProfile:
    """Records the attention of a forward pass in training mode with `rows` × `tokens` ids.

    Args:
        model: A model on the meta device, or of fake tensors; its attention implementation and mode are restored
            afterwards.

    Raises:
        Exception: any error of the architecture when it receives ids and position ids only.
    """
    calls: list[AttentionCall] = []
    implementation, training, pad = (
        model.config._attn_implementation,
        model.training,
        model.config.pad_token_id,
    )
    ids = torch.zeros((rows, tokens), dtype=torch.int64, device=model.device)
    try:
        model.set_attn_implementation(PROBE_NAME)
        model.train()
        model.config.pad_token_id = None  # some look for padding in the ids, which have no values here
        with _record_document_detection() as detections:
            model(input_ids=ids, position_ids=ids, use_cache=False, document_lengths=calls)
    finally:
        model.config.pad_token_id = pad
        model.train(training)
        model.set_attn_implementation(implementation)
    return AttentionProfile(calls, has_document_mask=bool(detections))


@contextmanager
def _record_document_detection() -> Iterator[list[None]]:
    """Yields a list that grows when transformers detects documents, which is not possible on the meta device."""
    detections: list[None] = []
    original = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: detections.append(None)
    try:
        yield detections
    finally:
        masking_utils.find_packed_sequence_indices = original


def _probe_forward(
    module: torch.nn.Module,
    query_BHTD: Tensor,
    key_BHTD: Tensor,
    value_BHTD: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    document_lengths: list[AttentionCall] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Records its call in the list that is passed in place of the document boundaries."""
    call = AttentionCall(
        heads=query_BHTD.shape[1],
        key_width=query_BHTD.shape[3],
        value_width=value_BHTD.shape[3],
        window=sliding_window,
        dropout=dropout,
        causal=bool(getattr(module, "is_causal", True) if is_causal is None else is_causal),
        features=tuple(feature for name, feature in SCORE_FEATURES.items() if kwargs.get(name) is not None),
        has_boundaries=document_lengths is not None,
    )
    if document_lengths is not None:
        document_lengths.append(call)
    device, dtype = query_BHTD.device.type, value_BHTD.dtype
    # Rotary embeddings leave queries and keys in fp32.
    if device != "meta" and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    return FlashAttentionStub.apply(query_BHTD.to(dtype), key_BHTD.to(dtype), value_BHTD.to(dtype)), None


class FlashAttentionStub(torch.autograd.Function):
    """A stub that saves the same tensors for the backward pass as Flash Attention: inputs, output and (B, H, T) fp32
    sums."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        B, H, T, _ = query.shape
        out = value.new_empty((B, T, H, value.shape[3]))
        ctx.save_for_backward(query, key, value, out, query.new_empty((B, H, T), dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


AttentionInterface.register(PROBE_NAME, _probe_forward)
masking_utils.AttentionMaskInterface.register(PROBE_NAME, lambda *_, **__: None)
