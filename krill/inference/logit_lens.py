"""Computes what a model would predict after each of its layers: the logit lens.

The hidden states after a layer go through the final norm and the output embeddings, as those of the last layer do
(nostalgebraist 2020, "interpreting GPT: the logit lens").

Shapes: N tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from krill.errors import UsageError
from krill.inference.decoder_layers import find_decoder_layers
from krill.inference.token_scores import TOP_ALTERNATIVES, TokenScore, score_logits

EMBEDDING = "embedding"
"""Name of the states before the first layer. The layers are named by their numbers from 0."""


@dataclass(frozen=True)
class LayerScores:
    """The scores of the tokens of a text by the hidden states after one layer."""

    layer: str
    scores: list[TokenScore]


@torch.no_grad()
def compute_logit_lens(
    model: PreTrainedModel, ids: list[int], top: int = TOP_ALTERNATIVES
) -> list[LayerScores]:
    """Returns the scores of ids[1:] after the embedding and after each layer; the last are those of the model.

    `ids`: bos first. Raises UsageError if final norm and output embeddings do not give the logits of this
    architecture.
    """
    decoder = find_decoder_layers(model)
    states_ND: list[Tensor] = []

    def record_input(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states_ND.append((args[0] if args else kwargs["hidden_states"])[0])

    def record_output(_: Any, __: Any, output: Any) -> None:
        states_ND.append((output[0] if isinstance(output, tuple) else output)[0])

    with ExitStack() as hooks:
        hooks.enter_context(decoder.layers[0].register_forward_pre_hook(record_input, with_kwargs=True))
        for layer in decoder.layers:
            hooks.enter_context(layer.register_forward_hook(record_output))
        inputs_1N = torch.tensor([ids[:-1]], device=model.device)
        logits_NV = model(input_ids=inputs_1N, use_cache=False).logits[0]
    head: Any = model.get_output_embeddings()
    names = [EMBEDDING, *map(str, range(len(decoder.layers)))]
    lens = []
    for name, state_ND in zip(names, states_ND, strict=True):
        layer_logits_NV = head(decoder.final_norm(state_ND))
        lens.append(LayerScores(name, score_logits(layer_logits_NV, ids[1:], top)))
    if not torch.allclose(layer_logits_NV.float(), logits_NV.float(), rtol=1e-2, atol=1e-2):
        raise UsageError(
            f"{type(model).__name__}: its logits are not its output embeddings of the final norm, so there is no "
            "logit lens; leave lens= out"
        )
    return lens
