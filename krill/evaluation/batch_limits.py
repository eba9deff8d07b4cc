"""How many tokens an evaluation computes at once; without torch, for a plan."""

from __future__ import annotations

MAX_BATCH_TOKENS = 2**14
MIN_BATCH_TOKENS = 256
LOGITS = {"cpu": 2**22, "cuda": 2**28}
"""Logits of a batch: 17 MB in fp32 on a CPU, where larger batches are not faster; 512 MB in bf16 on CUDA."""


def choose_max_batch_tokens(vocab_size: int, device: str, configured: int | None) -> int:
    """Returns the tokens of a batch on a `device` cpu or cuda, unless evaluation.max_batch_tokens is `configured`."""
    return configured or min(MAX_BATCH_TOKENS, max(MIN_BATCH_TOKENS, LOGITS[device] // vocab_size))
