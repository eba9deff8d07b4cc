"""Stubs of Flash Attention, which needs CUDA: its kernels for documents of any length in plain torch.

They have the signatures of torch 2.13's varlen_attn, flash-attn 2.8 and FlashAttention 3, each with only its own
options, and record their calls. The kernels that ignore documents raise when they are called.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

Pair = tuple[int, int]


class RecordedKernels:
    """The stub kernels. `calls` lists the module of each call."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def compute(
        self, name: str, q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor,
        max_seqlen_q: int, max_seqlen_k: int, scale: float | None, window: Pair, softcap: float = 0.0,
        dropout: float = 0.0,
    ) -> Tensor:  # fmt: skip
        """Computes causal attention of each document from all pairs, (N, H, D). The window excludes the token."""
        self.calls.append(name)
        assert q.dtype == k.dtype == v.dtype, "Flash Attention needs one dtype"
        assert q.shape[-1] % 8 == 0, "Flash Attention needs a head width that is a multiple of 8"
        assert window[1] == 0, "not causal"
        assert (cu_seqlens_q.dtype, cu_seqlens_k.dtype) == (torch.int32, torch.int32)
        assert (cu_seqlens_q[-1], cu_seqlens_k[-1]) == (len(q), len(k))
        assert (max_seqlen_q, max_seqlen_k) == (cu_seqlens_q.diff().max(), cu_seqlens_k.diff().max())
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        outs = []
        for document in range(len(cu_seqlens_q) - 1):
            queries, keys = (
                slice(*cu_seqlens[document : document + 2].tolist())
                for cu_seqlens in (cu_seqlens_q, cu_seqlens_k)
            )
            scores = torch.einsum("thd,shd->hts", q[queries], k[keys]) * (scale or q.shape[-1] ** -0.5)
            scores = softcap * torch.tanh(scores / softcap) if softcap else scores
            T, S = scores.shape[1:]
            distance = (torch.arange(T)[:, None] + S - T) - torch.arange(S)
            is_masked = (distance < 0) | (
                (distance > window[0]) if window[0] >= 0 else torch.zeros_like(distance, dtype=torch.bool)
            )
            weights = scores.masked_fill(is_masked, -torch.inf).softmax(-1)
            weights = torch.nn.functional.dropout(weights, dropout)
            outs.append(torch.einsum("hts,shd->thd", weights, v[keys]))
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


def refuse_dense(*_: Any, **__: Any) -> Tensor:
    raise AssertionError("the dense kernel was called, which ignores documents")


def install_stubs(monkeypatch: pytest.MonkeyPatch) -> RecordedKernels:
    """Replaces the kernels that krill imports by stubs."""
    kernels = RecordedKernels()
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernels.varlen_attn)
    for name, function in (
        ("flash_attn", kernels.flash_attn_2),
        ("flash_attn_interface", kernels.flash_attn_3),
    ):
        module: Any = ModuleType(name)
        module.flash_attn_varlen_func, module.flash_attn_func = function, refuse_dense
        monkeypatch.setitem(sys.modules, name, module)
    return kernels
