"""From the optimizer's section of the configuration to an optimizer of the model's parameters."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from krill.config import custom_code
from krill.config.schema import CustomOptimizerConfig, MuonConfig, OptimizerConfig
from krill.errors import UsageError
from krill.optim import muon
from krill.optim.groups import build_param_groups
from krill.optim.upstream import build_upstream


def build_optimizer(model: PreTrainedModel, config: OptimizerConfig) -> torch.optim.Optimizer:
    """`torch.optim.AdamW` for adamw, `krill.optim.muon.Muon` (or the published package, where `backend` asks for it)
    for the muon presets, on the same groups; custom: the person's own function.

    Raises:
        UsageError: FSDP 1 wraps a parameter, a parameter to train is not fp32 (Muon steps at a rate of 2e-4
            leave nine of ten bf16 weights as they were), or `build_param_groups` or `build_upstream` refuses.
    """
    for name, p in model.named_parameters():
        if "_flat_param" in name or "_fsdp_wrapped_module" in name:
            raise UsageError(
                f"the parameter {name} lies in FSDP 1, which flattens matrices to vectors; shard with FSDP 2: "
                "accelerate launch --use_fsdp --fsdp_version=2"
            )
        if p.requires_grad and p.dtype != torch.float32:
            raise UsageError(
                f"the parameter {name} is {str(p.dtype).removeprefix('torch.')}, in which small updates "
                "vanish; krill trains fp32 weights. Build or load the model with dtype=float32 and set "
                "hardware.precision=bf16: the forward pass is then computed in bf16"
            )
    if isinstance(config, CustomOptimizerConfig):
        keys = config.model_dump(exclude={"name", "build", "options", "max_grad_norm"})
        return custom_code.import_custom_function(config.build)(model, **keys, **config.options)
    groups = build_param_groups(model, config)
    if isinstance(config, MuonConfig):
        return build_upstream(groups, config) if config.backend == "upstream" else muon.Muon(groups)
    fused = all(p.device.type in ("cpu", "cuda") for p in model.parameters())
    return torch.optim.AdamW(groups, fused=fused)
