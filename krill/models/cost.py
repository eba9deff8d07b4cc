"""Counts what training a model takes: parameters, FLOPs per token, bytes that a forward pass saves.

All counts use the model on the meta device (`krill.models.build.build_meta_model`): nothing is allocated.

FLOPs follow Kaplan et al. 2020 and Chowdhery et al. 2022 ("PaLM", appendix B), and include the head but not the
embedding lookup: 6 for each weight that a token is multiplied with (2 forward, 4 backward), and for each token that
it attends to, 6 for each entry of key and of value, over heads and layers: 12·layers·heads·head_dim·attended_tokens
if key and value have equal width. Everything except matrix products (norms, activations, rotary embedding, softmax,
loss) is excluded, as in torch's FlopCounterMode, and so is the recomputation of activations.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

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
            matmul += weight.numel() * get_expert_share(model, weight)
    return ParameterCounts(
        total=sum(weight.numel() for weight in weights),
        embeddings=sum(weight.numel() for weight in weights if id(weight) in embeddings),
        matmul=round(matmul),
    )


def get_expert_share(model: PreTrainedModel, weight: Tensor) -> float:
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


def measure_saved_bytes(model: PreTrainedModel, rows: int, sequence_len: int, precision: str = "fp32") -> int:
    """Measures the bytes that autograd saves in a forward pass up to the logits, without fp32 weights.

    Attention saves the tensors that Flash Attention saves (query, key, value, output and one fp32 sum per head and
    token) and no mask. Under bf16, autocast casts as on the CPU, and its copies of the weights are saved as well; a
    model with experts is measured as if it were bf16 throughout.

    Args:
        model: A model on the meta device; its dtype may change.
        rows: Rows of a micro batch.
        sequence_len: Tokens per row.
        precision: Precision of the forward pass, fp32 or bf16.
    """
    if any(weight.ndim == 3 for weight in model.parameters()):  # experts, whose products need bf16 on meta
        saved = _measure_saved_tensor_bytes(model.to(torch.bfloat16), rows, sequence_len)
        return saved if precision == "bf16" else 2 * saved
    model.to(torch.float32)  # another estimate may have converted it
    if precision == "fp32":
        return _measure_saved_tensor_bytes(model, rows, sequence_len)
    # Meta has no autocast, and fake weights cannot return to it, where other estimates need them.
    model = copy.deepcopy(model)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.autocast("cpu", torch.bfloat16):
        return _measure_saved_tensor_bytes(model.to_empty(device="cpu"), rows, sequence_len)


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
