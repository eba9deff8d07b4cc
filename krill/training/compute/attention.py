"""Attention functions for packed rows: a row holds several documents, and no document attends to another.

krill registers these functions with transformers:

    varlen      one kernel for documents of any length: torch's built-in Flash Attention on CUDA; on the CPU one
                causal SDPA per document, which is exact and faster than attending across documents
                (`benchmarks/attention.py`)
    flash_attention_2, flash_attention_3
                the same with the packages flash-attn and FlashAttention 3, which support more features and GPUs.
                transformers' functions of these names are not used: they look for a missing package on the Hub, and
                reject a model that is still on the CPU

flex, sdpa and eager are transformers' own; it builds their mask from the position ids when it gets no attention mask
and no cache.

Shapes: B rows, H heads, T tokens of a row, S keys of a row (more than T with a cache), D head width, N tokens of all
rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from krill.training.compute import attention_kernels
from krill.training.compute.attention_kernels import DocumentBoundaries, causal_attention

ATTN_IMPLEMENTATIONS = {
    "flex": "flex_attention",
    "flash_attention_2": "varlen_2",
    "flash_attention_3": "varlen_3",
}
"""transformers' names of the backends that have another name there; it reserves names with "flash" for its own."""


def get_attn_implementation(backend: str) -> str:
    """Returns the `attn_implementation` with which transformers builds a model for `backend`."""
    return ATTN_IMPLEMENTATIONS.get(backend, backend)


def build_boundary_kwargs(backend: str, lengths: list[int], device: torch.device) -> dict[str, Any]:
    """Returns the model's keyword arguments that pass the document boundaries to `backend`."""
    if backend in ("flex", "sdpa", "eager"):
        return {}  # they derive the boundaries from position_ids
    if device.type != "cuda":
        return {"document_lengths": lengths}
    cu_seqlens = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return {"cu_seq_lens_q": cu_seqlens, "max_length_q": max(lengths)}


def varlen_attention_forward(
    module: torch.nn.Module,
    query_BHTD: Tensor,
    key_BHSD: Tensor,
    value_BHSD: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    document_lengths: list[int] | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Computes causal attention within each document, or plain causal attention without documents (generation).

    Args:
        query_BHTD, key_BHSD, value_BHSD: queries, keys and values; keys and values have fewer heads with
            grouped-query attention.
        attention_mask: ignored; the boundaries come from the document lengths.
        dropout: probability of dropping an attention weight; CPU only.
        sliding_window: the number of tokens a token attends to, including itself; None: all tokens before it.
        document_lengths: the number of tokens of each document (and of padding) in row order; sums to B·T. CPU.
        cu_seq_lens_q: int32, cumulative sum of the lengths from 0, on the device; with max_length_q. CUDA.

    Returns:
        The output, (B, T, H, D), and None for the attention weights.
    """
    if cu_seq_lens_q is not None:
        assert max_length_q is not None
        documents = DocumentBoundaries.from_cu_seqlens(cu_seq_lens_q, max_length_q)
        kernel = attention_kernels.torch_varlen_attention
        return _run_varlen_kernel(
            kernel, query_BHTD, key_BHSD, value_BHSD, documents, scaling, sliding_window
        ), None
    if document_lengths is None:
        out = causal_attention(query_BHTD, key_BHSD, value_BHSD, scaling, sliding_window, dropout)
        return out.transpose(1, 2).contiguous(), None
    out = attention_kernels.per_document_attention(
        query_BHTD, key_BHSD, value_BHSD, document_lengths, scaling, sliding_window, dropout
    )
    return out, None


def _build_flash_attention_forward(
    package: str, supports_dropout: bool
) -> Callable[..., tuple[Tensor, None]]:
    """Returns an attention function that calls the kernels of `package` (flash_attn, flash_attn_interface).

    Without `supports_dropout` the probability is not passed on; `krill.models.isolation` ensures that it is 0.
    """
    kernel = partial(attention_kernels.flash_attn_varlen, package)

    def attend(
        module: torch.nn.Module,
        query_BHTD: Tensor,
        key_BHSD: Tensor,
        value_BHSD: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        softcap: float | None = None,
        cu_seq_lens_q: Tensor | None = None,
        max_length_q: int | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        if cu_seq_lens_q is None:
            documents = DocumentBoundaries.from_rows(query_BHTD, key_BHSD)
        else:
            assert max_length_q is not None
            documents = DocumentBoundaries.from_cu_seqlens(cu_seq_lens_q, max_length_q)
        options = {"softcap": softcap} | ({"dropout_p": dropout} if supports_dropout else {})
        return _run_varlen_kernel(
            kernel, query_BHTD, key_BHSD, value_BHSD, documents, scaling, sliding_window, **options
        ), None

    return attend


def _run_varlen_kernel(
    kernel: Callable[..., Tensor],
    query_BHTD: Tensor,
    key_BHSD: Tensor,
    value_BHSD: Tensor,
    documents: DocumentBoundaries,
    scaling: float | None,
    window: int | None,
    **options: Any,
) -> Tensor:
    """Runs a kernel that takes concatenated documents, (N, H, D), on rows; returns (B, T, H, D)."""
    B, H, T, D = query_BHTD.shape
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query_BHTD, key_BHSD, value_BHSD))
    scale = D**-0.5 if scaling is None else scaling
    out = attention_kernels.run_with_padded_heads(kernel, q, k, v, documents, scale, window, **options)
    return out.view(B, T, H, D)


ATTENTION_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "varlen": varlen_attention_forward,
    "varlen_2": _build_flash_attention_forward("flash_attn", supports_dropout=True),
    "varlen_3": _build_flash_attention_forward("flash_attn_interface", supports_dropout=False),
}
for _name, _function in ATTENTION_FUNCTIONS.items():
    AttentionInterface.register(_name, _function)
# No mask functions are registered, so transformers builds no mask: that would make the host wait for the device.
