"""Finds the layers of a model's decoder and its final norm, whatever the architecture calls them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from krill.errors import UsageError


@dataclass(frozen=True)
class DecoderLayers:
    """The layers of a decoder and what follows them."""

    layers: nn.ModuleList
    final_norm: nn.Module
    """The identity for a model without one."""


def find_decoder_layers(model: PreTrainedModel) -> DecoderLayers:
    """Returns the layers of `model`: its first list of as many modules as its configuration has layers.

    Raises UsageError if there is none.
    """
    count = getattr(model.config, "num_hidden_layers", None)
    for decoder in model.modules():
        for layers in decoder.children():
            if isinstance(layers, nn.ModuleList) and len(layers) == count:
                norms = [child for child in decoder.children() if "norm" in type(child).__name__.lower()]
                return DecoderLayers(layers, norms[-1] if norms else nn.Identity())
    raise UsageError(f"{type(model).__name__}: krill does not find the layers of this architecture")
