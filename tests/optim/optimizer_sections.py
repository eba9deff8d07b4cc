"""Optimizer sections of the configuration, with the values of conf/."""

from __future__ import annotations

from typing import Any

from krill.config import schema

ADAMW = {
    "lr": 1e-3,
    "weight_decay": 0.1,
    "betas": (0.9, 0.95),
    "eps": 1e-8,
    "max_grad_norm": 1.0,
    "z_loss": 0.0,
    "lr_embeddings": 1.0,
    "lr_head": 1.0,
    "lr_vectors": 1.0,
    "weight_decay_embeddings": 1.0,
}
MUON = ADAMW | {
    "eps_before_correction": False,
    "scale": "spectral",
    "muon_lr": 5e-3,
    "muon_weight_decay": 0.02,
    "momentum": 0.95,
    "nesterov": True,
    "cautious": False,
    "normuon": False,
    "ns_steps": 5,
    "ns_coefficients": "keller",
    "ns_dtype": "auto",
    "adamw_modules": [],
}


def adamw(**keys: Any) -> schema.AdamWConfig:
    return schema.AdamWConfig(**(ADAMW | {"name": "adamw"} | keys))


def muon(name: str, **keys: Any) -> schema.MuonConfig:
    return schema.MuonConfig(**(MUON | {"name": name} | keys))
