"""What a model costs before it is trained: parameters, FLOPs of a token, bytes of a training step.

All from the model on the meta device (`krill.models.build.build_meta_model`): nothing is allocated.

FLOPs after Kaplan et al. 2020 and Chowdhery et al. 2022 ("PaLM", appendix B), with the head counted and the lookup
of embeddings not: 6 for each weight that a token is multiplied with (2 forward, 4 backward), and for each token that
it attends to 6 for each entry of key and of value, over heads and layers: 12·layers·heads·head_dim·attended where
both are as wide. What is no matrix product (norms, activations, rotary embedding, softmax, loss) is left out, as
torch's FlopCounterMode does; recomputation of activations does not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from krill.models.attention_probe import probe_attention


@dataclass(frozen=True)
class ParameterCounts:
    """Entries of a model's weights, tied ones once."""

    total: int
    embeddings: int
    """Of lookups, positions included; those tied to the head too."""
    matmul: int
    """Entries that one token is multiplied with: matrices and head, tied or not; of experts those it is sent to."""


def get_parameter_counts(model: PreTrainedModel) -> ParameterCounts:
    """The weights of `model`, which may be on the meta device."""
    looked_up = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    head = model.get_output_embeddings()
    multiplied = 0 if head is None else head.weight.numel()
    every = list(model.parameters())
    for weight in every:
        if weight.ndim >= 2 and id(weight) not in looked_up and (head is None or weight is not head.weight):
            multiplied += weight.numel() * _get_expert_share(model, weight)
    return ParameterCounts(
        total=sum(weight.numel() for weight in every),
        embeddings=sum(weight.numel() for weight in every if id(weight) in looked_up),
        matmul=round(multiplied),
    )


def _get_expert_share(model: PreTrainedModel, weight: Tensor) -> float:
    """The share of a stack of experts, (experts, out, in), that one token meets."""
    chosen = getattr(model.config.get_text_config(), "num_experts_per_tok", None)
    return chosen / weight.shape[0] if weight.ndim == 3 and chosen else 1.0


def compute_training_flops(model: PreTrainedModel, sequence_len: int, attended: float | None = None) -> float:
    """FLOPs of one token in training, forward and backward.

    Args:
        model: on the meta device; becomes bf16 in here, some kernels are for that only.
        sequence_len: tokens of a row.
        attended: mean number of tokens that a token attends to, itself included; documents shorten it
            (`compute_mean_attention_span`). None: one document fills a row, (sequence_len + 1) / 2; a sliding window cuts it.
    """
    total = 6.0 * get_parameter_counts(model).matmul
    for call in probe_attention(model.to(torch.bfloat16)).calls:
        seen = compute_mean_attention_span([sequence_len], call.window) if attended is None else attended
        if call.window is not None:
            seen = min(seen, call.window)
        total += 6 * call.heads * (call.key_width + call.value_width) * seen
    return total


def compute_mean_attention_span(lengths: Iterable[int], window: int | None = None) -> float:
    """Tokens that a token of documents of these `lengths` attends to on average, itself included."""
    pairs = tokens = 0
    for length in lengths:
        near = length if window is None else min(window, length)
        pairs += near * (near + 1) // 2 + (length - near) * near
        tokens += length
    return pairs / tokens


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of a training step on one device, without sharding."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    """What the forward pass keeps for the backward pass, up to the logits; an estimate."""
    logits: int
    """What head and loss need at a time; an estimate."""
    saving: int = 0
    """The copy of weights and optimizer state that is written in the background."""

    @property
    def fixed(self) -> int:
        """What does not depend on the micro batch: exact."""
        return self.weights + self.gradients + self.optimizer + self.saving

    @property
    def total(self) -> int:
        return self.fixed + self.activations + self.logits


def estimate_training_memory(
    model: PreTrainedModel,
    groups: Iterable[Mapping[str, Any]],
    rows: int,
    sequence_len: int,
    precision: str = "fp32",
    logits_at_once: int | None = None,
    recomputed: bool = False,
) -> MemoryEstimate:
    """Memory of a step with fp32 weights and gradients.

    Assumptions of the estimates: attention keeps what Flash Attention keeps (query, key, value, output and one fp32
    sum for each head and token) and no mask; under bf16 every product is bf16, norms are as the model's code computes
    them, and the bf16 copies of weights that autocast makes are kept. What is only needed within one layer, the
    allocator's rounding and the CUDA context (about 0.5 GB) are not in it. On CPUs in fp32 the peak of a real step is
    within 15 % of activations and logits together.

    Args:
        model: on the meta device; becomes `precision` in here.
        groups: of the optimizer, as `krill.optim.groups.build_param_groups` makes them.
        rows: of a micro batch.
        sequence_len: tokens of a row.
        precision: fp32 or bf16, of the forward pass.
        logits_at_once: tokens whose logits exist at the same time, for a loss in chunks
            (`krill.training.compute.cross_entropy`); None: all of them, in fp32 with their softmax and their gradient.
        recomputed: gradient checkpointing: the input of each layer is kept, and one layer at a time computed again.
    """
    counted = get_parameter_counts(model)
    state = sum(compute_state_bytes(group) for group in groups)
    kept = _measure_saved_tensor_bytes(
        model.to(torch.bfloat16 if precision == "bf16" else torch.float32), rows, sequence_len
    )
    copies = 2 * (counted.total - counted.embeddings) if precision == "bf16" else 0
    logits = _estimate_logits_bytes(model, rows * sequence_len, precision, logits_at_once)
    if recomputed:
        layers = model.config.get_text_config().num_hidden_layers
        inputs = 4 * rows * sequence_len * model.get_input_embeddings().weight.shape[1]
        # the logits are gone when a layer is there again
        kept = (layers + 1) * inputs + max(0, kept // layers - logits)
    return MemoryEstimate(
        weights=4 * counted.total,
        gradients=4 * counted.total,
        optimizer=state,
        activations=kept + copies,
        logits=logits,
    )


def _estimate_logits_bytes(model: PreTrainedModel, tokens: int, precision: str, at_once: int | None) -> int:
    """In full, fp32 logits, softmax and gradient, under bf16 the head's output too. In chunks 8 bytes for each of
    their entries, and the fp32 gradients of the head's weight and of the hidden states, made with the loss."""
    vocabulary, width = model.get_input_embeddings().weight.shape
    if at_once is None:
        return tokens * vocabulary * (14 if precision == "bf16" else 12)
    return min(at_once, tokens) * vocabulary * 8 + 4 * (vocabulary + tokens) * width


def compute_state_bytes(group: Mapping[str, Any]) -> int:
    """Bytes of the optimizer's state of one parameter group.

    AdamW keeps two fp32 moments and a step, Muon one moment, NorMuon one more number for each neuron.
    """
    weights: list[Tensor] = list(group["params"])
    entries = sum(weight.numel() for weight in weights)
    if group["kind"] == "adamw":
        return 8 * entries + 4 * len(weights)
    neurons = (
        sum(weight.shape[1 if group["transposed"] else 0] for weight in weights) if group["normuon"] else 0
    )
    return 4 * entries + 4 * neurons


def _measure_saved_tensor_bytes(model: PreTrainedModel, rows: int, tokens: int) -> int:
    """Bytes that autograd keeps in a forward pass up to the logits, each storage once, weights apart."""
    weights = {weight.untyped_storage()._cdata for weight in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        probe_attention(model, rows, tokens)
    return sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in weights)
