"""What can be known to be wrong with a training before anything is made."""

from __future__ import annotations

from krill.config.schema import TrainConfig, Transformer
from krill.training.backends import choose
from krill.training.kernels import check_kernels
from krill.training.launcher import check_launcher
from krill.training.plan import device_name, precision, shape_of
from krill.training.trackers import check_trackers


def check_beforehand(config: TrainConfig) -> None:
    """Raise UsageError for all that can be known to be wrong before anything is made."""
    check_launcher()
    check_trackers(config)
    device = device_name(config.device)
    check_kernels(config.hardware, device)
    choose(config.hardware.attention, device, precision(config.hardware.precision, device))
    shape_of(config)
    _check_model(config)
    if config.branch is not None:
        from krill.training.branch import branch_of, check

        check(branch_of(config.branch), config)


def _check_model(config: TrainConfig) -> None:
    """Raise UsageError for a model that cannot read this tokenizer's rows, or cannot keep their documents apart."""
    if isinstance(config.model, Transformer):
        return  # nothing to find out
    from krill.models import pretrained
    from krill.training.setting import backend

    pretrained.check(config)
    backend(config)
