"""Causal attention kernels for concatenated documents: torch's own and those of flash-attn.

FlashAttention-2 (Dao, 2023, arXiv:2307.08691). They support fp16 and bf16 on CUDA. krill's window includes the token
itself; theirs counts only the tokens to its left.

Shapes: N tokens of all documents, H heads, D head width; B, T, S as in `krill.training.compute.attention`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import varlen

QUERY_BLOCK_SIZE = 256
"""The number of queries per block of sliding-window attention on the CPU, unless the window is larger."""


def _select_gqa_option(varlen_attn: Callable[..., Any]) -> dict[str, Any]:
    """Returns the option for grouped queries; a version of torch without it (2.11) accepts them as they are."""
    return {"enable_gqa": True} if "enable_gqa" in signature(varlen_attn).parameters else {}


GQA_OPTION = _select_gqa_option(varlen.varlen_attn)


@dataclass(frozen=True)
class DocumentBoundaries:
    """Document boundaries of queries and keys: cumulative lengths from 0 (int32, on the device) and an upper bound of
    the lengths. Documents may be empty."""

    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    max_seqlen_q: int
    max_seqlen_k: int

    @classmethod
    def from_cu_seqlens(cls, cu_seqlens: Tensor, max_seqlen: int) -> DocumentBoundaries:
        return cls(cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)

    @classmethod
    def from_rows(cls, query_BHTD: Tensor, key_BHSD: Tensor) -> DocumentBoundaries:
        """Treats each row as one document, whose T queries are the last of its S tokens."""
        (B, _, T, _), S = query_BHTD.shape, key_BHSD.shape[2]
        rows = torch.arange(B + 1, dtype=torch.int32, device=query_BHTD.device)
        return cls(rows * T, rows * S, T, S)


def cast_to_autocast_dtype(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Casts all three to autocast's dtype, if it is enabled; rotary embeddings leave queries and keys in fp32."""
    device = query.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        return query.to(dtype), key.to(dtype), value.to(dtype)
    return query, key, value


def run_with_padded_heads(
    kernel: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, *arguments: Any, **options: Any
) -> Tensor:
    """Runs `kernel` on (N, H, D) in one dtype, with the head width padded to a multiple of 8, which it requires."""
    width = q.shape[-1]
    q, k, v = cast_to_autocast_dtype(q, k, v)
    if width % 8:
        q, k, v = (F.pad(x, (0, -width % 8)) for x in (q, k, v))
    return kernel(q, k, v, *arguments, **options)[..., :width]


def torch_varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, documents: DocumentBoundaries, scale: float, window: int | None
) -> Tensor:
    """Computes attention with torch's Flash Attention, (N, H, D), or with what replaced it
    (`krill.training.compute.flash`); no dropout, no softcap."""
    return cast(Tensor, varlen.varlen_attn(
        q, k, v, documents.cu_seqlens_q, documents.cu_seqlens_k, documents.max_seqlen_q, documents.max_seqlen_k,
        scale=scale, window_size=_to_window_size(window), **GQA_OPTION,
    ))  # fmt: skip


def flash_attn_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    documents: DocumentBoundaries,
    scale: float,
    window: int | None,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    """Computes attention with the package flash-attn, (N, H, D)."""
    return cast(Tensor, import_module("flash_attn").flash_attn_varlen_func(
        q, k, v, documents.cu_seqlens_q, documents.cu_seqlens_k, documents.max_seqlen_q, documents.max_seqlen_k,
        dropout_p=dropout, softmax_scale=scale, causal=True, window_size=_to_window_size(window),
        softcap=softcap or 0.0,
    ))  # fmt: skip


def _to_window_size(window: int | None) -> tuple[int, int]:
    """Returns Flash Attention's (left, right) window: tokens before and after the token itself; -1: no limit."""
    return (-1 if window is None else window - 1), 0


def per_document_attention(
    query_BHTD: Tensor,
    key_BHTD: Tensor,
    value_BHTD: Tensor,
    lengths: list[int],
    scale: float | None,
    window: int | None,
    dropout: float,
) -> Tensor:
    """Computes attention separately for each document, (B, T, H, D); for the CPU."""
    B, H, T, D = query_BHTD.shape
    flat = (x.transpose(1, 2).reshape(B * T, -1, D) for x in (query_BHTD, key_BHTD, value_BHTD))
    outs = []
    for document in zip(*(x.split(lengths) for x in flat), strict=True):
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in document)
        outs.append(causal_attention(q, k, v, scale, window, dropout).squeeze(0).transpose(0, 1))
    return torch.cat(outs).view(B, T, H, D)


def causal_attention(
    query_BHTD: Tensor,
    key_BHSD: Tensor,
    value_BHSD: Tensor,
    scale: float | None,
    window: int | None,
    dropout: float,
) -> Tensor:
    """Computes causal attention of rows, (B, H, T, D); a single query is the last token of its row.

    Sliding-window attention runs in blocks of queries, each with the keys in its reach: T · window pairs, not T².
    """
    T, S = query_BHTD.shape[2], key_BHSD.shape[2]
    options: dict[str, Any] = {"scale": scale, "enable_gqa": True, "dropout_p": dropout}
    if window is None or window >= S or T == 1:
        k, v = (x if window is None else x[:, :, -window:] for x in (key_BHSD, value_BHSD))
        return F.scaled_dot_product_attention(query_BHTD, k, v, is_causal=T > 1, **options)
    blocks, block_size = [], max(window, QUERY_BLOCK_SIZE)
    for first in range(0, T, block_size):
        left = max(0, first - window + 1)
        q, k, v = (
            x[:, :, start : first + block_size]
            for x, start in ((query_BHTD, first), (key_BHSD, left), (value_BHSD, left))
        )
        distance = torch.arange(first, first + q.shape[2])[:, None] - torch.arange(left, left + k.shape[2])
        mask = ((distance >= 0) & (distance < window)).to(q.device)
        blocks.append(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **options))
    return torch.cat(blocks, dim=2)
