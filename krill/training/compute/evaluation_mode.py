"""Computes with a model in training what krill-evaluate computes with its checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """Computes in evaluation mode, in fp32 and with attention that knows no documents; then all is as it was.

    accelerate replaces the forward function of a model by one with autocast, and keeps the original. A model that
    FSDP2 shards in bf16, or with fp8 layers, computes in that precision here too.

    The random state is restored as well, which a custom model may use in evaluation mode.
    """
    was_training, attention = model.training, model.config._attn_implementation
    forward, original = model.__dict__.get("forward"), model.__dict__.get("_original_forward")
    matmul_precision = torch.get_float32_matmul_precision()
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        model.eval()
        model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
        if original is not None:
            model.forward = original
        torch.set_float32_matmul_precision("highest")
        with torch.random.fork_rng(devices):
            yield
    finally:
        torch.set_float32_matmul_precision(matmul_precision)
        if original is not None:
            model.forward = forward
        model.set_attn_implementation(attention)
        model.train(was_training)
