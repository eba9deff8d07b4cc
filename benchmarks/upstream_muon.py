"""pytorch_optimizer's Muon on the parameter groups of krill, as the reference of the benchmarks and tests of Muon."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import OmegaConf
from transformers import PreTrainedModel

from krill.cli.compose import compose_config
from krill.config.schema import MuonConfig
from krill.optim.groups import build_param_groups

COEFFICIENTS = {"keller": "original", "polar_express": "polar_express"}


def build_upstream_muon(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Builds pytorch_optimizer.Muon (4.1) for groups with the options of `krill.optim.muon.Muon`."""
    from pytorch_optimizer import Muon

    return Muon([_translate_group(group) for group in groups])


def build(model: PreTrainedModel, lr: float, **_: Any) -> torch.optim.Optimizer:
    """Builds it for a training: a function for a configuration of optimizer=custom."""
    overrides = ["optimizer=muon_pto", f"lr={lr}", f"model.hidden_size={model.config.hidden_size}"]
    section = OmegaConf.to_container(compose_config("train", overrides).optimizer, resolve=True)
    return build_upstream_muon(build_param_groups(model, MuonConfig.model_validate(section)))


def _translate_group(group: dict[str, Any]) -> dict[str, Any]:
    common = {key: group[key] for key in ("name", "kind", "params", "lr", "weight_decay")}
    if group["kind"] == "adamw":
        return common | {"use_muon": False, "betas": group["betas"], "eps": group["eps"]}
    return common | {
        "use_muon": True,
        "momentum": group["momentum"],
        "nesterov": group["nesterov"],
        "ns_steps": group["ns_steps"],
        "ns_coeffs": COEFFICIENTS[group["ns_coefficients"]],
        "use_adjusted_lr": group["scale"] == "rms",
    }
