"""Rounds exported weights to their data type."""

from __future__ import annotations

import torch

from krill.errors import UsageError

WEIGHT_DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}


def cast_weight(name: str, weight: torch.Tensor, dtype: str) -> torch.Tensor:
    """Returns `weight` rounded to `dtype`. Raises UsageError if a finite value is too large for it."""
    cast = weight.to(WEIGHT_DTYPES[dtype])
    if dtype == "f16" and not torch.equal(torch.isfinite(cast), torch.isfinite(weight)):
        raise UsageError(
            f"dtype=f16: {name} has the value {weight.abs().max().item():.3g}, and f16 ends at 65,504; use dtype=bf16"
        )
    return cast
