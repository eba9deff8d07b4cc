"""What the launcher of the ranks asked for and krill cannot do right, refused before any work is done."""

from __future__ import annotations

import os
from collections.abc import Mapping

from krill.errors import UsageError

TRUE_VALUES = {"1", "true", "t", "yes", "y", "on"}


def check_accelerate_env(environ: Mapping[str, str] = os.environ) -> None:
    """UsageError when `accelerate launch` was told to use DeepSpeed or FSDP 1.

    DeepSpeed takes its own groups for those of the optimizer and clips updates in place of gradients
    (deepspeedai/DeepSpeed#7713, #8441); FSDP 1 hands vectors to an optimizer that sorts by matrix and vector.
    """
    if _is_enabled(environ, "ACCELERATE_USE_DEEPSPEED"):
        raise UsageError(
            "ACCELERATE_USE_DEEPSPEED: DeepSpeed replaces the optimizer's groups and scales Muon's updates, so the "
            "run would not be what optimizer= says. Leave --use_deepspeed away (in accelerate's file: "
            "distributed_type: MULTI_GPU), or shard with --use_fsdp --fsdp_version=2; unset "
            "ACCELERATE_USE_DEEPSPEED if you set it yourself"
        )
    if _is_enabled(environ, "ACCELERATE_USE_FSDP") and environ.get("FSDP_VERSION", "1") != "2":
        raise UsageError(
            "FSDP_VERSION: FSDP 1 flattens matrices to vectors, so Muon would train none of them and weight decay "
            "would go astray. Write --fsdp_version=2 (in accelerate's file: fsdp_version: 2 below fsdp_config), "
            "or FSDP_VERSION=2"
        )


def _is_enabled(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "").lower() in TRUE_VALUES
