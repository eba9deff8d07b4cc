"""Rejects DeepSpeed and FSDP 1 when `accelerate launch` requests them through the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping

from krill.errors import UsageError

TRUE_VALUES = {"1", "true", "t", "yes", "y", "on"}


def check_accelerate_env(environ: Mapping[str, str] = os.environ) -> None:
    """Raises UsageError if `accelerate launch` is configured for DeepSpeed or FSDP 1.

    DeepSpeed replaces the optimizer's parameter groups and clips updates instead of gradients
    (deepspeedai/DeepSpeed#7713, #8441). FSDP 1 flattens matrices to vectors, but krill's optimizers treat matrices
    and vectors differently.
    """
    if _is_enabled(environ, "ACCELERATE_USE_DEEPSPEED"):
        raise UsageError(
            "ACCELERATE_USE_DEEPSPEED: DeepSpeed replaces the optimizer's parameter groups and scales Muon's "
            "updates, so the run would not use optimizer= as configured. Remove --use_deepspeed (in accelerate's "
            "config file: distributed_type: MULTI_GPU), or shard with --use_fsdp --fsdp_version=2; unset "
            "ACCELERATE_USE_DEEPSPEED if you set it yourself"
        )
    if _is_enabled(environ, "ACCELERATE_USE_FSDP") and environ.get("FSDP_VERSION", "1") != "2":
        raise UsageError(
            "FSDP_VERSION: FSDP 1 flattens matrices to vectors, so Muon would not train any of them and weight decay "
            "would apply to the wrong parameters. Use --fsdp_version=2 (in accelerate's config file: fsdp_version: 2 "
            "below fsdp_config), or FSDP_VERSION=2"
        )


def _is_enabled(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "").lower() in TRUE_VALUES
