"""Attention functions for packed rows: a row holds several documents, and no document attends to another.

krill registers these functions with transformers:

    varlen      one kernel for documents of any length: torch's built-in Flash Attention on CUDA, or FlashAttention 3
                or 4 in its place (`krill.training.compute.flash`); on the CPU one causal SDPA per document, which is
                exact and faster than attending across documents (`benchmarks/attention.py`)
    flash_attention_2
                the same with the package flash-attn, which also supports softcaps and dropout. transformers' function
                of this name is not used: it looks for a missing package on the Hub, and rejects a model that is still
                on the CPU

flex, sdpa and eager are transformers' own; it builds their mask from the position ids when it gets no attention mask
and no cache.

Shapes: B rows, H heads, T tokens of a row, S keys of a row (more than T with a cache), D head width, N tokens of all
rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from krill.training.compute import attention_kernels
from krill.training.compute.attention_kernels import DocumentBoundaries, causal_attention

ATTN_IMPLEMENTATIONS = {
    "flex": "flex_attention",
    "flash_attention_2": "varlen_2",
    "flash_attention_3": "varlen",
    "flash_attention_4": "varlen",
}
"""transformers' names of the backends that have another name there; it reserves names with "flash" for its own."""

BOUNDARY_BLOCK = 256
"""The number of boundaries on CUDA is a multiple of this, filled up with empty documents. It is then the same for
most batches, so that torch.compile does not compile again for another number of documents."""


def get_attn_implementation(backend: str) -> str:
    """Returns the `attn_implementation` with which transformers builds a model for `backend`."""
    return ATTN_IMPLEMENTATIONS.get(backend, backend)


def build_boundary_kwargs(
    backend: str, lengths: list[int], sequence_len: int, device: torch.device
) -> dict[str, Any]:
    """Returns the model's keyword arguments that pass the document boundaries to `backend`.

    `lengths`: the number of tokens of each document, at most `sequence_len`, in the order of the batch.
    """
    if backend in ("flex", "sdpa", "eager"):
        return {}  # they derive the boundaries from position_ids
    if device.type != "cuda":
        return {"document_lengths": lengths}
    cu_seqlens = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    padding = -len(cu_seqlens) % BOUNDARY_BLOCK
    cu_seqlens = F.pad(cu_seqlens, (0, padding), value=sum(lengths))
    return {"cu_seq_lens_q": cu_seqlens, "max_length_q": sequence_len}


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
        cu_seq_lens_q: int32, cumulative sum of the lengths from 0, on the device; with max_length_q, a length that no
            document exceeds. CUDA.

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


def flash_attention_2_forward(
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
    """Computes what `varlen_attention_forward` does, with the package flash-attn; CUDA."""
    if cu_seq_lens_q is None:
        documents = DocumentBoundaries.from_rows(query_BHTD, key_BHSD)
    else:
        assert max_length_q is not None
        documents = DocumentBoundaries.from_cu_seqlens(cu_seq_lens_q, max_length_q)
    return _run_varlen_kernel(
        attention_kernels.flash_attn_varlen, query_BHTD, key_BHSD, value_BHSD, documents, scaling, sliding_window,
        softcap=softcap, dropout=dropout,
    ), None  # fmt: skip


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
    "varlen_2": flash_attention_2_forward,
}
for _name, _function in ATTENTION_FUNCTIONS.items():
    AttentionInterface.register(_name, _function)
# No mask functions are registered, so transformers builds no mask: that would make the host wait for the device.
