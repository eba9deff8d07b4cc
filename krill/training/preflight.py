"""What can be known to be wrong with a training before anything is made."""

from __future__ import annotations

import torch

from krill.config.schema import TrainConfig, TransformerConfig
from krill.errors import UsageError
from krill.training.accelerate_env import check_accelerate_env
from krill.training.batch_shape import (
    resolve_batch_shape,
    resolve_device,
    resolve_precision,
    world_size_from_env,
)
from krill.training.compute.backends import select_attention_backend
from krill.training.compute.liger import check_kernels
from krill.training.metrics.trackers import check_trackers


def run_preflight_checks(config: TrainConfig) -> None:
    """Raise UsageError for all that can be known to be wrong before anything is made."""
    check_accelerate_env()
    check_trackers(config)
    device = resolve_device(config.device)
    check_kernels(config.hardware, device)
    select_attention_backend(
        config.hardware.attention, device, resolve_precision(config.hardware.precision, device)
    )
    _check_ranks(config, device)
    resolve_batch_shape(config)
    _check_model(config)
    if config.branch is not None:
        from krill.training.checkpoint.branch import check_branch, resolve_branch

        check_branch(resolve_branch(config.branch), config)


def _check_ranks(config: TrainConfig, device: str) -> None:
    """Raise UsageError for ranks that were started otherwise than asked for, or that have no device."""
    asked, started = config.hardware.processes, world_size_from_env()
    assert asked != "auto"
    if started > 1 and asked != 1 and not config.hardware.slurm and asked != started:
        raise UsageError(
            f"hardware.processes={asked}, but {started} ranks were started (WORLD_SIZE): leave hardware.processes out"
        )
    if device == "cuda" and started == 1 and asked > torch.cuda.device_count():
        raise UsageError(
            f"hardware.processes={asked}, but this machine has {torch.cuda.device_count()} CUDA devices that may be "
            "used; each rank needs one"
        )


def _check_model(config: TrainConfig) -> None:
    """Raise UsageError for a model that cannot read this tokenizer's rows, or cannot keep their documents apart."""
    if isinstance(config.model, TransformerConfig):
        return  # nothing to find out
    from krill.models import pretrained
    from krill.training.setup import resolve_attention_backend

    pretrained.check_pretrained(config)
    resolve_attention_backend(config)
