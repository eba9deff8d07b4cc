"""Stubs of Flash Attention, which needs CUDA: its kernels for documents of any length in plain torch.

They have the signatures of torch's varlen_attn and of flash-attn 2.8, each with only its own options, and record
their calls. The kernel that ignores documents raises when it is called. torch.compile traces them without a graph
break, and then nothing is recorded.
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
        assert q.dtype == k.dtype == v.dtype, "Flash Attention needs one dtype"
        assert q.shape[-1] % 8 == 0, "Flash Attention needs a head width that is a multiple of 8"
        assert window[1] == 0, "not causal"
        assert (cu_seqlens_q.dtype, cu_seqlens_k.dtype) == (torch.int32, torch.int32)
        if not torch.compiler.is_compiling():
            self.calls.append(name)
            assert (cu_seqlens_q[-1], cu_seqlens_k[-1]) == (len(q), len(k))
            assert max_seqlen_q >= cu_seqlens_q.diff().max()
            assert max_seqlen_k >= cu_seqlens_k.diff().max()
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        scores = torch.einsum("thd,shd->hts", q, k) * (scale or q.shape[-1] ** -0.5)
        scores = softcap * torch.tanh(scores / softcap) if softcap else scores
        (document_q, left_q), (document_k, left_k) = (
            locate_tokens(cu_seqlens, len(x)) for cu_seqlens, x in ((cu_seqlens_q, q), (cu_seqlens_k, k))
        )
        distance = left_k[None] - left_q[:, None]
        is_masked = (document_q[:, None] != document_k) | (distance < 0)
        if window[0] >= 0:
            is_masked = is_masked | (distance > window[0])
        weights = scores.masked_fill(is_masked, -torch.inf).softmax(-1)
        return torch.einsum("hts,shd->thd", torch.nn.functional.dropout(weights, dropout), v)

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


def locate_tokens(cu_seqlens: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Returns the document of each token, and the number of tokens from it to the end of its document."""
    positions = torch.arange(tokens, dtype=torch.int32)
    documents = torch.searchsorted(cu_seqlens, positions, right=True)
    return documents, cu_seqlens[documents] - positions


def refuse_dense(*_: Any, **__: Any) -> Tensor:
    raise AssertionError("the dense kernel was called, which ignores documents")


def install_stubs(monkeypatch: pytest.MonkeyPatch) -> RecordedKernels:
    """Replaces the kernels that krill imports by stubs."""
    kernels = RecordedKernels()
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernels.varlen_attn)
    module: Any = ModuleType("flash_attn")
    module.flash_attn_varlen_func, module.flash_attn_func = kernels.flash_attn_2, refuse_dense
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    return kernels
