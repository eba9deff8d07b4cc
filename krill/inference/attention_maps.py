"""Computes where a head of a model looks: its attention weights for a text.

Shapes: H heads, N tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from krill.errors import UsageError
from krill.inference.decoder_layers import find_decoder_layers


@dataclass(frozen=True)
class AttentionMap:
    """The attention weights of one head."""

    layer: int
    head: int
    """Both from 0."""
    ids: list[int]
    """The tokens."""
    weights_NN: Tensor
    """float32, on the CPU: how much each token (row) attends to each token up to itself (column); rows sum to 1."""


@torch.no_grad()
def compute_attention_map(model: PreTrainedModel, ids: list[int], layer: int, head: int) -> AttentionMap:
    """Returns the attention of one head over `ids`, bos first.

    Raises UsageError if the model has no such layer or head, or if the layer has no attention weights.
    """
    layers = find_decoder_layers(model).layers
    if layer >= len(layers):
        raise UsageError(
            f"attention={layer}.{head}: no layer {layer}; the model has layers 0 to {len(layers) - 1}"
        )
    recorded_HNN: list[Tensor] = []

    def record_weights(_: Any, __: Any, output: Any) -> None:
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if isinstance(weights, Tensor) and weights.shape[2:] == (len(ids), len(ids)):
            recorded_HNN.append(weights[0])

    with _eager_attention(model), ExitStack() as hooks:
        for module in layers[layer].modules():
            hooks.enter_context(module.register_forward_hook(record_weights))
        model(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
    if not recorded_HNN:
        raise UsageError(
            f"attention={layer}.{head}: layer {layer} of {type(model).__name__} gives no attention weights; use "
            "another layer"
        )
    if head >= len(recorded_HNN[0]):
        raise UsageError(
            f"attention={layer}.{head}: no head {head}; layer {layer} has heads 0 to {len(recorded_HNN[0]) - 1}"
        )
    return AttentionMap(layer, head, ids, recorded_HNN[0][head].float().cpu())


@contextmanager
def _eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """Computes attention by the one implementation that gives the weights."""
    previous = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(previous)
