"""In place of Flash Attention, which wants CUDA: its kernels for documents of any lengths in plain torch.

They have the signatures of torch 2.13's varlen_attn, flash-attn 2.8 and FlashAttention 3, each without what others
have, and note their calls. The kernels that see no documents refuse to be called.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

Pair = tuple[int, int]


class Kernels:
    """The calls so far, by the name of the kernel's module."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def compute(
        self, name: str, q: Tensor, k: Tensor, v: Tensor, ends_q: Tensor, ends_k: Tensor, longest_q: int,
        longest_k: int, scale: float | None, window: Pair, softcap: float = 0.0, dropout: float = 0.0,
    ) -> Tensor:  # fmt: skip
        """Causal attention of each document, all pairs: (N, H, D). A window counts the tokens to its left."""
        self.calls.append(name)
        assert q.dtype == k.dtype == v.dtype, "Flash Attention takes one dtype"
        assert q.shape[-1] % 8 == 0, "Flash Attention wants heads as wide as a multiple of 8"
        assert window[1] == 0, "not causal"
        assert (ends_q.dtype, ends_k.dtype) == (torch.int32, torch.int32)
        assert (ends_q[-1], ends_k[-1]) == (len(q), len(k))
        assert (longest_q, longest_k) == (ends_q.diff().max(), ends_k.diff().max())
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        outs = []
        for document in range(len(ends_q) - 1):
            mine, theirs = (slice(*ends[document : document + 2].tolist()) for ends in (ends_q, ends_k))
            scores = torch.einsum("thd,shd->hts", q[mine], k[theirs]) * (scale or q.shape[-1] ** -0.5)
            scores = softcap * torch.tanh(scores / softcap) if softcap else scores
            T, S = scores.shape[1:]
            back = (torch.arange(T)[:, None] + S - T) - torch.arange(S)
            far = (back < 0) | (
                (back > window[0]) if window[0] >= 0 else torch.zeros_like(back, dtype=torch.bool)
            )
            weights = scores.masked_fill(far, -torch.inf).softmax(-1)
            weights = torch.nn.functional.dropout(weights, dropout)
            outs.append(torch.einsum("hts,shd->thd", weights, v[theirs]))
        return torch.cat(outs)

    def varlen_attn(
        self, query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int,
        *, scale: float | None = None, window_size: Pair = (-1, -1), enable_gqa: bool = False,
    ) -> Tensor:  # fmt: skip
        assert enable_gqa or query.shape[1] == key.shape[1]
        return self.compute("torch", query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, window_size)

    def flash_attn_2(
        self, q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int,
        max_seqlen_k: int, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
        window_size: Pair = (-1, -1), softcap: float = 0.0, alibi_slopes: None = None,
    ) -> Tensor:  # fmt: skip
        assert causal
        return self.compute("flash_attn", q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
                            softmax_scale, window_size, softcap, dropout_p)  # fmt: skip

    def flash_attn_3(
        self, q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int,
        max_seqlen_k: int, seqused_q: None = None, seqused_k: None = None, softmax_scale: float | None = None,
        causal: bool = False, window_size: Pair = (-1, -1), softcap: float = 0.0,
    ) -> tuple[Tensor, None]:  # fmt: skip
        assert causal
        return self.compute("flash_attn_interface", q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
                            softmax_scale, window_size, softcap), None  # fmt: skip


def dense(*_: Any, **__: Any) -> Tensor:
    raise AssertionError("the dense kernel was called, which sees no documents")


def install(monkeypatch: pytest.MonkeyPatch) -> Kernels:
    """Put the stand-ins where the kernels are looked for."""
    kernels = Kernels()
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernels.varlen_attn)
    for name, function in (
        ("flash_attn", kernels.flash_attn_2),
        ("flash_attn_interface", kernels.flash_attn_3),
    ):
        module: Any = ModuleType(name)
        module.flash_attn_varlen_func, module.flash_attn_func = function, dense
        monkeypatch.setitem(sys.modules, name, module)
    return kernels
