"""Attention within documents: a row holds several, none of them sees another.

Functions of krill's own, registered with transformers:

    varlen      one kernel for documents of any lengths: Flash Attention inside torch on CUDA; on the CPU one causal
                SDPA per document: exact, and faster than attending across documents (`benchmarks/attention.py`)
    flash_attention_2, flash_attention_3
                the same by the packages flash-attn and FlashAttention 3, which know more features and GPUs. Not by
                transformers' functions of that name: those look for a missing package on the Hub, and refuse a
                model that is still on the CPU

flex, sdpa and eager are transformers' own, with a mask that it makes of position ids when it gets no attention mask
and no cache.

Shapes: B rows, H heads, T tokens of a row, S of them with keys (more than T where a cache holds the rest), D width of
a head, N tokens of all rows.
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
"""What backends are called in transformers where it is not their own name: it takes "flash" for its own."""


def get_attn_implementation(backend: str) -> str:
    """The name by which a model is built with `backend`."""
    return ATTN_IMPLEMENTATIONS.get(backend, backend)


def build_boundary_kwargs(backend: str, lengths: list[int], device: torch.device) -> dict[str, Any]:
    """The keyword arguments that tell `backend` where documents end."""
    if backend in ("flex", "sdpa", "eager"):
        return {}  # position_ids say it
    if device.type != "cuda":
        return {"document_lengths": lengths}
    ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return {"cu_seq_lens_q": ends, "max_length_q": max(lengths)}


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
    """Causal attention within each document; plain causal attention where no documents are given (generation).

    Args:
        query_BHTD, key_BHSD, value_BHSD: queries and (fewer heads with grouped queries) keys and values.
        attention_mask: not used: documents are told by their lengths.
        dropout: share of the weights that is dropped; CPU.
        sliding_window: tokens that one sees, itself included; None: all before it.
        document_lengths: tokens of each document (and padding), rows one after the other; sum is B·T. CPU.
        cu_seq_lens_q: int32, their running sum from 0, on the device; with max_length_q. CUDA.

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


def _build_flash_attention_forward(module: str, drops: bool) -> Callable[..., tuple[Tensor, None]]:
    """The attention function that computes by a `module` of flash-attn; `drops`: it takes dropout, of which
    `krill.models.isolation` leaves none where it does not."""
    kernel = partial(attention_kernels.flash_attn_varlen, module)

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
        more = {"softcap": softcap} | ({"dropout_p": dropout} if drops else {})
        return _run_varlen_kernel(
            kernel, query_BHTD, key_BHSD, value_BHSD, documents, scaling, sliding_window, **more
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
    **more: Any,
) -> Tensor:
    """What a kernel for documents one after the other, (N, H, D), makes of rows; (B, T, H, D)."""
    B, H, T, D = query_BHTD.shape
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query_BHTD, key_BHSD, value_BHSD))
    scale = D**-0.5 if scaling is None else scaling
    return attention_kernels.run_with_padded_heads(kernel, q, k, v, documents, scale, window, **more).view(
        B, T, H, D
    )


ATTENTION_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "varlen": varlen_attention_forward,
    "varlen_2": _build_flash_attention_forward("flash_attn", drops=True),
    "varlen_3": _build_flash_attention_forward("flash_attn_interface", drops=False),
}
for _name, _function in ATTENTION_FUNCTIONS.items():
    AttentionInterface.register(_name, _function)
# No masks are registered: transformers then looks for none, which would make the host wait for the device.
