"""Estimates the cost of training a model: parameters, FLOPs per token, bytes of a training step.

All estimates use the model on the meta device (`krill.models.build.build_meta_model`): nothing is allocated.

FLOPs follow Kaplan et al. 2020 and Chowdhery et al. 2022 ("PaLM", appendix B), and include the head but not the
embedding lookup: 6 for each weight that a token is multiplied with (2 forward, 4 backward), and for each token that
it attends to, 6 for each entry of key and of value, over heads and layers: 12·layers·heads·head_dim·attended_tokens
if key and value have equal width. Everything except matrix products (norms, activations, rotary embedding, softmax,
loss) is excluded, as in torch's FlopCounterMode, and so is the recomputation of activations.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import LlamaForCausalLM, PreTrainedModel, Qwen3ForCausalLM

from krill.models.attention_probe import probe_attention

EQUAL_LAYER_MODELS = (LlamaForCausalLM, Qwen3ForCausalLM)


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of entries in the weights of a model; tied weights are counted once."""

    total: int
    embeddings: int
    """Entries that are looked up, including position embeddings and embeddings tied to the head."""
    matmul: int
    """Entries that one token is multiplied with: matrices, head (tied or not) and the experts it is routed to."""


def get_parameter_counts(model: PreTrainedModel) -> ParameterCounts:
    """Counts the weights of `model`, which may be on the meta device."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    head = model.get_output_embeddings()
    matmul = 0 if head is None else head.weight.numel()
    weights = list(model.parameters())
    for weight in weights:
        if weight.ndim >= 2 and id(weight) not in embeddings and (head is None or weight is not head.weight):
            matmul += weight.numel() * _get_expert_share(model, weight)
    return ParameterCounts(
        total=sum(weight.numel() for weight in weights),
        embeddings=sum(weight.numel() for weight in weights if id(weight) in embeddings),
        matmul=round(matmul),
    )


def _get_expert_share(model: PreTrainedModel, weight: Tensor) -> float:
    """Returns the fraction of a stack of experts, (experts, out, in), that one token is routed to."""
    experts_per_token = getattr(model.config.get_text_config(), "num_experts_per_tok", None)
    return experts_per_token / weight.shape[0] if weight.ndim == 3 and experts_per_token else 1.0


def compute_training_flops(
    model: PreTrainedModel, sequence_len: int, attended_tokens: float | None = None
) -> float:
    """Computes the FLOPs of one token in training, forward and backward.

    Args:
        model: A model on the meta device; it is converted to bf16, because some kernels support bf16 only.
        sequence_len: Tokens per row.
        attended_tokens: Mean number of tokens that a token attends to, itself included; documents shorten it
            (`compute_mean_attention_span`). None: one document fills a row, (sequence_len + 1) / 2. A sliding window
            limits it.
    """
    total = 6.0 * get_parameter_counts(model).matmul
    model.to(torch.bfloat16)
    with _limit_layers(model, 1) as num_layers:
        calls = probe_attention(model).calls * num_layers
    for call in calls:
        span = attended_tokens
        if span is None:
            span = compute_mean_attention_span([sequence_len], call.window)
        if call.window is not None:
            span = min(span, call.window)
        total += 6 * call.heads * (call.key_width + call.value_width) * span
    return total


def compute_mean_attention_span(lengths: Sequence[int] | np.ndarray, window: int | None = None) -> float:
    """Computes the mean number of tokens that a token of documents of `lengths` attends to, itself included."""
    sizes = np.asarray(lengths, dtype=np.int64)
    spans = sizes if window is None else np.minimum(sizes, window)
    pairs = spans * (spans + 1) // 2 + (sizes - spans) * spans
    return int(pairs.sum()) / int(sizes.sum())


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of a training step on one device, without sharding."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    """Tensors that the forward pass saves for the backward pass, up to the logits; an estimate."""
    logits: int
    """Peak of head and loss; an estimate."""
    saving: int = 0
    """The copy of weights and optimizer state from which a checkpoint is written in the background."""

    @property
    def fixed(self) -> int:
        """The part that does not depend on the micro batch; exact."""
        return self.weights + self.gradients + self.optimizer + self.saving

    @property
    def total(self) -> int:
        """All parts together."""
        return self.fixed + self.activations + self.logits


def estimate_training_memory(
    model: PreTrainedModel,
    groups: Iterable[Mapping[str, Any]],
    rows: int,
    sequence_len: int,
    precision: str = "fp32",
    logits_chunk_tokens: int | None = None,
    gradient_checkpointing: bool = False,
    has_weight_copies: bool = True,
) -> MemoryEstimate:
    """Estimates the memory of a step with fp32 weights and gradients.

    Assumptions: attention saves the tensors that Flash Attention saves (query, key, value, output and one fp32 sum
    per head and token) and no mask; under bf16, autocast casts as on the CPU, and keeps its copies of the weights; a
    model with experts is estimated as if it were bf16 throughout. Memory needed within one layer only, the
    allocator's rounding and the CUDA context (about 0.5 GB) are not included. On CPUs in fp32, the peak of a real
    step is within 15 % of activations and logits together.

    Args:
        model: A model on the meta device; its dtype may change.
        groups: Parameter groups of the optimizer, from `krill.optim.groups.build_param_groups`.
        rows: Rows of a micro batch.
        sequence_len: Tokens per row.
        precision: Precision of the forward pass, fp32 or bf16.
        logits_chunk_tokens: Tokens whose logits exist at the same time, for a loss in chunks
            (`krill.training.compute.cross_entropy`). None: all tokens, in fp32 with softmax and gradient.
        gradient_checkpointing: The input of each layer is kept, and one layer at a time is recomputed.
        has_weight_copies: Whether bf16 autocast keeps copies of the matrices of the layers. Not where they are bf16
            already (FSDP2), or cast again in the backward pass (fp8).
    """
    counts = get_parameter_counts(model)
    optimizer = sum(compute_state_bytes(group) for group in groups)
    activations = _estimate_activation_bytes(model, rows, sequence_len, precision, has_weight_copies)
    logits = _estimate_logits_bytes(model, rows * sequence_len, precision, logits_chunk_tokens)
    if gradient_checkpointing:
        layers = model.config.get_text_config().num_hidden_layers
        inputs = 4 * rows * sequence_len * model.get_input_embeddings().weight.shape[1]
        # the logits are freed before a layer is recomputed
        activations = (layers + 1) * inputs + max(0, activations // layers - logits)
    return MemoryEstimate(
        weights=4 * counts.total,
        gradients=4 * counts.total,
        optimizer=optimizer,
        activations=activations,
        logits=logits,
    )


def _estimate_logits_bytes(
    model: PreTrainedModel, tokens: int, precision: str, chunk_tokens: int | None
) -> int:
    """Estimates the bytes of head and loss.

    Full loss: fp32 logits, softmax and gradient, under bf16 also the output of the head. Chunked loss: 8 bytes per
    logit of a chunk, and the fp32 gradients of the head's weight and of the hidden states, computed with the loss.
    """
    vocab_size, width = model.get_input_embeddings().weight.shape
    if chunk_tokens is None:
        return tokens * vocab_size * (14 if precision == "bf16" else 12)
    return min(chunk_tokens, tokens) * vocab_size * 8 + 4 * (vocab_size + tokens) * width


def compute_state_bytes(group: Mapping[str, Any]) -> int:
    """Computes the bytes of the optimizer state of one parameter group.

    AdamW stores two fp32 moments and a step count, Muon one moment, NorMuon one more number per neuron.
    """
    weights: list[Tensor] = list(group["params"])
    entries = sum(weight.numel() for weight in weights)
    if group["kind"] == "adamw":
        return 8 * entries + 4 * len(weights)
    neurons = (
        sum(weight.shape[1 if group["transposed"] else 0] for weight in weights) if group["normuon"] else 0
    )
    return 4 * entries + 4 * neurons


def _estimate_activation_bytes(
    model: PreTrainedModel, rows: int, sequence_len: int, precision: str, has_weight_copies: bool
) -> int:
    if any(weight.ndim == 3 for weight in model.parameters()):  # experts, whose products need bf16 on meta
        saved = _measure_saved_tensor_bytes(model.to(torch.bfloat16), rows, sequence_len)
        return saved if precision == "bf16" else 2 * saved
    model.to(torch.float32)  # another estimate may have converted it
    if precision == "fp32":
        return _measure_saved_tensor_bytes(model, rows, sequence_len)
    # Meta has no autocast, and fake weights cannot return to it, where other estimates need them.
    model = copy.deepcopy(model)
    if not has_weight_copies:
        for matrix in _list_layer_matrices(model):
            matrix.data = matrix.data.to(torch.bfloat16)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.autocast("cpu", torch.bfloat16):
        return _measure_saved_tensor_bytes(model.to_empty(device="cpu"), rows, sequence_len)


def _list_layer_matrices(model: PreTrainedModel) -> list[nn.Parameter]:
    """Returns the weights of two dimensions, without embeddings and head."""
    modules = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    modules += [model.get_output_embeddings()] if model.get_output_embeddings() is not None else []
    others = {id(module.weight) for module in modules}
    return [weight for weight in model.parameters() if weight.ndim == 2 and id(weight) not in others]


def _measure_saved_tensor_bytes(model: PreTrainedModel, rows: int, tokens: int) -> int:
    """Measures the bytes that autograd saves in a forward pass up to the logits, without weights."""
    with _limit_layers(model, 2) as num_layers:
        saved = _run_and_measure_saved_tensors(model, rows, tokens)
    if num_layers == 1:
        return saved
    with _limit_layers(model, 3):
        of_one_layer = _run_and_measure_saved_tensors(model, rows, tokens) - saved
    return saved + (num_layers - 2) * of_one_layer


@contextmanager
def _limit_layers(model: PreTrainedModel, count: int) -> Iterator[int]:
    """Runs the forward passes of the context with `count` layers only, if all layers of `model` are equal.

    Those of Llama and Qwen3 are, and these classes read their number in each pass. Yields the number of layers for
    which the `count` layers stand, 1 if the passes run with all.
    """
    layers = model.config.get_text_config().num_hidden_layers
    kinds = getattr(model.config, "layer_types", None) or []  # full attention, or a sliding window
    if type(model) not in EQUAL_LAYER_MODELS or len(set(kinds)) > 1 or layers <= count:
        yield 1
        return
    model.config.num_hidden_layers = count
    try:
        yield layers
    finally:
        model.config.num_hidden_layers = layers


def _run_and_measure_saved_tensors(model: PreTrainedModel, rows: int, tokens: int) -> int:
    weights = {weight.untyped_storage()._cdata for weight in model.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def record(tensor: Tensor) -> None:
        """Keeps the storage alone: a tensor that the graph holds, and that holds the graph, is never freed."""
        storage = tensor.untyped_storage()
        saved.setdefault(storage._cdata, storage)

    def restore(_: None) -> Tensor:
        raise AssertionError("a probe has no backward pass")

    with torch.autograd.graph.saved_tensors_hooks(record, restore):
        probe_attention(model, rows, tokens)
    return sum(storage.nbytes() for pointer, storage in saved.items() if pointer not in weights)
