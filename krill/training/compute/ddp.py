"""DDP: every rank holds the whole model, and gradients are averaged over the ranks (hardware.sharding=none)."""

from __future__ import annotations

import warnings

import torch
from transformers import Trainer


def configure_ddp(trainer: Trainer) -> None:
    """Sets the options of DDP that Trainer has no argument for, or a slower default."""
    # torch 2.13 has another name, torch 2.11 does not.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
    options = trainer.accelerator.ddp_handler
    # Gradients are views of the buckets that are sent: 4 bytes per parameter less, and a copy less per step.
    options.gradient_as_bucket_view = True
    options.broadcast_buffers = has_saved_buffers(trainer.model)


def has_saved_buffers(model: torch.nn.Module) -> bool:
    """Returns whether `model` has buffers that checkpoints hold, such as running statistics, which training changes.

    Other buffers (rotary frequencies) are equal on all ranks.
    """
    return not model.state_dict().keys() <= {
        name for name, _ in model.named_parameters(remove_duplicate=False)
    }
