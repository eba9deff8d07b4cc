"""Attention within documents: a row holds several, none of them sees another.

`varlen` is an attention function of krill's own, registered with transformers. On CUDA it is
`torch.nn.attention.varlen.varlen_attn` (Flash Attention inside torch), on the CPU one causal SDPA per document:
exact, and faster than attending across documents (1.4 to 3.7 times faster than a block mask). The other
backends build a block mask from position ids, which transformers does when it gets no attention mask and no
cache.

Shapes: B rows, H heads, T tokens of a row, D width of a head.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from krill.errors import UsageError


def varlen(
    module: torch.nn.Module,
    query_BHTD: Tensor,
    key_BHTD: Tensor,
    value_BHTD: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    document_lengths: list[int] | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each document; plain causal attention where no documents are given (generation).

    Args:
        query_BHTD, key_BHTD, value_BHTD: queries and (fewer heads with grouped queries) keys and values.
        attention_mask: not used: documents are told by their lengths.
        document_lengths: tokens of each document (and padding), rows one after the other; sum is B·T. CPU.
        cu_seq_lens_q: int32, their running sum from 0, on the device; with max_length_q. CUDA.

    Returns:
        The output, (B, T, H, D), and None for the attention weights.
    """
    if document_lengths is None and cu_seq_lens_q is None:
        causal = query_BHTD.shape[2] > 1
        out = F.scaled_dot_product_attention(
            query_BHTD, key_BHTD, value_BHTD, is_causal=causal, scale=scaling, enable_gqa=True
        )
        return out.transpose(1, 2).contiguous(), None

    B, H, T, D = query_BHTD.shape
    q, k, v = (x.transpose(1, 2).reshape(B * T, -1, D) for x in (query_BHTD, key_BHTD, value_BHTD))
    if cu_seq_lens_q is not None:
        assert max_length_q is not None
        from torch.nn.attention.varlen import varlen_attn

        out = cast(Tensor, varlen_attn(
            q, k, v, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q,
            scale=scaling, window_size=(-1, 0), enable_gqa=True,
        ))  # fmt: skip
    else:
        assert document_lengths is not None
        documents = zip(
            q.split(document_lengths), k.split(document_lengths), v.split(document_lengths), strict=True
        )
        out = torch.cat([_one_document(q_THD, k_THD, v_THD, scaling) for q_THD, k_THD, v_THD in documents])
    return out.view(B, T, H, D), None


def _one_document(q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, scaling: float | None) -> Tensor:
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q_THD, k_THD, v_THD))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
    return out.squeeze(0).transpose(0, 1)


def boundaries(backend: str, lengths: list[int], device: torch.device) -> dict[str, Any]:
    """The keyword arguments that tell `backend` where documents end."""
    if backend != "varlen":
        return {}  # position_ids say it
    if device.type != "cuda":
        return {"document_lengths": lengths}
    ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return {"cu_seq_lens_q": ends, "max_length_q": max(lengths)}


def choose(asked: str, device: str, precision: str) -> str:
    """The backend for hardware.attention.

    auto: varlen, but sdpa for fp32 on CUDA, which Flash Attention does not compute; asking for varlen there is a
    UsageError.
    """
    impossible = device == "cuda" and precision == "fp32"
    if asked == "varlen" and impossible:
        raise UsageError(
            "hardware.attention=varlen is Flash Attention on CUDA, which has no fp32; write "
            "hardware.precision=bf16 or hardware.attention=sdpa"
        )
    if asked == "auto":
        return "sdpa" if impossible else "varlen"
    return asked


AttentionInterface.register("varlen", varlen)
