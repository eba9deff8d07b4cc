"""What can be known to be wrong with a training before anything is made."""

from __future__ import annotations

import torch

from krill.config.schema import TrainConfig, Transformer
from krill.errors import UsageError
from krill.training.backends import choose
from krill.training.kernels import check_kernels
from krill.training.launcher import check_launcher
from krill.training.plan import announced, device_name, precision, shape_of
from krill.training.trackers import check_trackers


def check_beforehand(config: TrainConfig) -> None:
    """Raise UsageError for all that can be known to be wrong before anything is made."""
    check_launcher()
    check_trackers(config)
    device = device_name(config.device)
    check_kernels(config.hardware, device)
    choose(config.hardware.attention, device, precision(config.hardware.precision, device))
    _check_ranks(config, device)
    shape_of(config)
    _check_model(config)
    if config.branch is not None:
        from krill.training.branch import branch_of, check

        check(branch_of(config.branch), config)


def _check_ranks(config: TrainConfig, device: str) -> None:
    """Raise UsageError for ranks that were started otherwise than asked for, or that have no device."""
    asked, started = config.hardware.processes, announced()
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
    if isinstance(config.model, Transformer):
        return  # nothing to find out
    from krill.models import pretrained
    from krill.training.setting import backend

    pretrained.check(config)
    backend(config)
