"""How many tokens an evaluation computes at once; without torch, for a plan."""

from __future__ import annotations

MAX_BATCH_TOKENS, MIN_BATCH_TOKENS = 2**14, 256
"""The most and the fewest tokens of a batch."""
CPU_BATCH_TOKENS = 512
"""Tokens of a batch on a CPU, whose caches hold the activations of no more (benchmarks/evaluation.py)."""
CUDA_LOGITS = 2**28
"""Number of logits of a batch on CUDA: 512 MB in bf16."""


def choose_max_batch_tokens(vocab_size: int, device: str, configured: int | None) -> int:
    """Returns the tokens of a batch on a `device` cpu or cuda, unless evaluation.max_batch_tokens is `configured`."""
    most = min(MAX_BATCH_TOKENS, CUDA_LOGITS // vocab_size) if device == "cuda" else CPU_BATCH_TOKENS
    return configured or max(MIN_BATCH_TOKENS, most)
