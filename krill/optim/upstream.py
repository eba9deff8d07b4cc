"""The published package behind a Muon preset, for those who must reproduce it: `optimizer.backend=upstream`.

Only muon_pto has one: pytorch_optimizer 4.1. It steps by the rule of `krill.optim.muon` at `scale: spectral`, but
overwrites the gradients and iterates in bf16 on every device.
"""

from __future__ import annotations

from importlib import metadata
from typing import Any

import torch

from krill.config.schema import MuonConfig
from krill.errors import KrillError, UsageError
from krill.optim.layout import Layout

COEFFICIENTS = {"keller": "original", "polar_express": "polar_express"}

NO_PACKAGE = {
    "muon_keller": (
        "muon-optimizer 0.1.0, the only release of Keller Jordan's Muon, fails under the Trainer (its step takes no "
        "closure). The same rule with the same scale is optimizer=muon_pto optimizer.backend=upstream"
    ),
    "muon_moonlight": (
        "Moonlight published a script, no package. The same rule is optimizer=muon_pto optimizer.backend=upstream "
        "optimizer.scale=rms optimizer.weight_decay=0.1"
    ),
}


def build_upstream(groups: list[dict[str, Any]], config: MuonConfig) -> torch.optim.Optimizer:
    """pytorch_optimizer's Muon on the groups of `krill.optim.groups.build_param_groups`.

    Raises:
        UsageError: the preset has no package, the package is not installed in version 4.1, or the configuration
            asks for what it cannot do.
        KrillError: its two scales do not differ as they should (`use_adjusted_lr` meant the opposite before 4.1).
    """
    if config.name in NO_PACKAGE:
        raise UsageError(
            f"optimizer.backend=upstream: {NO_PACKAGE[config.name]}; or write optimizer.backend=krill, which equals "
            "it to 1e-4 after 20 steps where both iterate in fp32"
        )
    _refuse_what_it_cannot(groups, config)
    package = _package()
    _probe(package)
    return package([_translated(group) for group in groups])


def _refuse_what_it_cannot(groups: list[dict[str, Any]], config: MuonConfig) -> None:
    asked = {
        "optimizer.cautious=true": config.cautious,
        "optimizer.normuon=true": config.normuon,
        "optimizer.ns_dtype=fp32": config.ns_dtype == "fp32",
        "optimizer.eps_before_correction=true": config.eps_before_correction,
    }
    for key in (key for key, is_asked in asked.items() if is_asked):
        raise UsageError(f"{key}: pytorch_optimizer has no such option; write optimizer.backend=krill")
    for group in groups:
        if group["kind"] == "muon" and any(group[key] != value for key, value in Layout()._asdict().items()):
            raise UsageError(
                f"optimizer.backend=upstream: pytorch_optimizer takes the matrices of {group['name']} as one "
                f"projection each, (out, in), which they are not; write optimizer.backend=krill"
            )


def _package() -> Any:
    try:
        from pytorch_optimizer import Muon as Upstream
    except ImportError as error:
        raise UsageError(
            "optimizer.backend=upstream needs pytorch_optimizer 4.1: pip install 'krill[upstream]'"
        ) from error
    version = metadata.version("pytorch_optimizer")
    if not version.startswith("4.1."):
        raise UsageError(
            f"optimizer.backend=upstream needs pytorch_optimizer 4.1, here is {version}; other versions step "
            "otherwise: pip install 'pytorch_optimizer==4.1.*'"
        )
    return Upstream


def _probe(package: Any) -> None:
    """One step on a 256 × 64 matrix: 0.2·√256 with use_adjusted_lr over √(256/64) without is 1.6."""
    sizes = []
    for adjusted in (True, False):
        start = torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
        p = torch.nn.Parameter(start.clone())
        p.grad = start.clone()
        package([{"params": [p], "use_muon": True, "use_adjusted_lr": adjusted}]).step()
        sizes.append(float((p.detach() - start).norm()))
    if abs(sizes[0] / sizes[1] - 1.6) > 0.01:
        raise KrillError(
            f"pytorch_optimizer's use_adjusted_lr changes a step {sizes[0] / sizes[1]:.3f}-fold and not 1.6-fold: "
            "its meaning has changed; write optimizer.backend=krill"
        )


def _translated(group: dict[str, Any]) -> dict[str, Any]:
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
