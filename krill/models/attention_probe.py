"""What a model asks of its attention function, found by running it on the meta device: nothing is allocated.

An architecture may attend within a window, cap its scores, drop some of them or add sinks, each under keys of its own
name. Here they are read where they arrive: in the call of the function that transformers' AttentionInterface chose.
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
"""Arguments that change the scores beyond query, key and mask, and what each is."""


@dataclass(frozen=True)
class AttentionCall:
    """One layer's attention."""

    heads: int
    """Query heads."""
    key_width: int
    value_width: int
    window: int | None
    """Tokens that one sees, itself included; None: all before it."""
    dropout: float
    causal: bool
    features: tuple[str, ...]
    """What it uses of FEATURES, in words."""
    has_boundaries: bool
    """Whether the documents' boundaries reached it."""


@dataclass(frozen=True)
class AttentionProfile:
    """How a model attends."""

    calls: list[AttentionCall]
    """One for each layer that attends, in their order."""
    has_document_mask: bool
    """Whether transformers looks into position_ids for documents when it builds the masks of sdpa and eager."""


def probe_attention(model: PreTrainedModel, rows: int = 1, tokens: int = 16) -> AttentionProfile:
    """What one forward pass in training mode over `rows` × `tokens` ids asks for.

    Args:
        model: on the meta device; its attention implementation and mode are as before afterwards.

    Raises:
        Exception: whatever the architecture raises when it is given ids and position ids only.
    """
    calls: list[AttentionCall] = []
    before, training, pad = model.config._attn_implementation, model.training, model.config.pad_token_id
    ids = torch.zeros((rows, tokens), dtype=torch.int64, device="meta")
    try:
        model.set_attn_implementation(PROBE_NAME)
        model.train()
        model.config.pad_token_id = None  # some look for padding in the ids, which here are none
        with _record_position_reads() as readings:
            model(input_ids=ids, position_ids=ids, use_cache=False, document_lengths=calls)
    finally:
        model.config.pad_token_id = pad
        model.train(training)
        model.set_attn_implementation(before)
    return AttentionProfile(calls, has_document_mask=bool(readings))


@contextmanager
def _record_position_reads() -> Iterator[list[None]]:
    """A list that grows when transformers looks for documents, which it could not do on the meta device."""
    readings: list[None] = []
    before = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: readings.append(None)
    try:
        yield readings
    finally:
        masking_utils.find_packed_sequence_indices = before


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
    **others: Any,
) -> tuple[Tensor, None]:
    """An attention function that notes how it is called in the list that stands in for the boundaries."""
    call = AttentionCall(
        heads=query_BHTD.shape[1],
        key_width=query_BHTD.shape[3],
        value_width=value_BHTD.shape[3],
        window=sliding_window,
        dropout=dropout,
        causal=bool(getattr(module, "is_causal", True) if is_causal is None else is_causal),
        features=tuple(words for name, words in SCORE_FEATURES.items() if others.get(name) is not None),
        has_boundaries=document_lengths is not None,
    )
    if document_lengths is not None:
        document_lengths.append(call)
    return FlashAttentionStub.apply(query_BHTD, key_BHTD, value_BHTD), None


class FlashAttentionStub(torch.autograd.Function):
    """A stand-in for Flash Attention that keeps what it keeps for the backward pass: its input, its output and
    (B, H, T) fp32 sums."""

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
