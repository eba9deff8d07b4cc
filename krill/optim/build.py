"""Builds the optimizer that the configuration describes."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from krill.config import custom_code
from krill.config.schema import CustomOptimizerConfig, MuonConfig, OptimizerConfig
from krill.errors import UsageError
from krill.optim import muon
from krill.optim.groups import build_param_groups


def build_optimizer(model: PreTrainedModel, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Builds the optimizer of the model's parameters.

    Returns:
        `torch.optim.AdamW` for adamw and `krill.optim.muon.Muon` for the muon presets, on the groups of
        `build_param_groups`; for custom, what the user's function returns.

    Raises:
        UsageError: a parameter is wrapped by FSDP 1, a trainable parameter is not fp32 (at a rate of 2e-4, Muon's
            steps leave nine of ten bf16 weights unchanged), the user's function returns something else, or
            `build_param_groups` raises.
    """
    for name, p in model.named_parameters():
        if "_flat_param" in name or "_fsdp_wrapped_module" in name:
            raise UsageError(
                f"the parameter {name} is wrapped by FSDP 1, which flattens matrices to vectors; shard with FSDP 2: "
                "accelerate launch --use_fsdp --fsdp_version=2"
            )
        if p.requires_grad and p.dtype != torch.float32:
            raise UsageError(
                f"the parameter {name} is {str(p.dtype).removeprefix('torch.')}, in which small updates "
                "vanish; krill trains fp32 weights. Build or load the model with dtype=float32 and set "
                "hardware.precision=bf16: the forward pass is then computed in bf16"
            )
    if isinstance(config, CustomOptimizerConfig):
        keys = config.model_dump(exclude={"name", "build", "options", "max_grad_norm", "z_loss"})
        optimizer = custom_code.import_custom_function(config.build)(model, **keys, **config.options)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise UsageError(
                f"optimizer.build={config.build}: returned {type(optimizer).__name__}; return a torch.optim.Optimizer"
            )
        return optimizer
    groups = build_param_groups(model, config)
    if isinstance(config, MuonConfig):
        return muon.Muon(groups)
    fused = all(p.device.type in ("cpu", "cuda") for p in model.parameters())
    return torch.optim.AdamW(groups, fused=fused)
