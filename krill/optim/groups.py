"""Sort a model's parameters into optimizer groups by what they are, not by what they are called.

Embeddings and head are found through the model's own `get_input_embeddings` and `get_output_embeddings`, so
that GPT-2's `wte` or NeoX's `embed_out` are recognized as well as Llama's, tied or not. Muon takes the hidden
matrices; embeddings, head, vectors and tensors of more than two dimensions stay with AdamW (Jordan et al.
2024, Liu et al. 2025). Weight decay applies to matrices and embeddings, not to vectors (norms, biases).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel

from krill.config.schema import AdamW, Muon
from krill.errors import UsageError

# Embeddings first: the Trainer logs the rate of group 0, which is then `lr` and never the derived `muon_lr`.
NAMES = ("embeddings", "head", "vectors", "tensors", "matrices")


class GroupSummary(NamedTuple):
    """One line of the header's table of groups."""

    name: str
    tensors: int
    parameters: int
    lr: float
    weight_decay: float


def parameter_groups(model: PreTrainedModel, config: AdamW | Muon) -> list[dict[str, Any]]:
    """The groups of `model` for `torch.optim.AdamW` or `krill.optim.muon.Muon`.

    Every parameter with `requires_grad` is in exactly one group, a tied embedding in `embeddings`.

    Returns:
        At most five groups, empty ones left out: `embeddings`, `head`, `vectors` (fewer than two dimensions),
        `tensors` (more than two), `matrices`. Each has `name`, `kind` (adamw or muon), `params`, `lr`,
        `weight_decay` and the other options of its kind.

    Raises:
        UsageError: nothing to train, or Muon was asked for and the model has no hidden matrix.
    """
    members = _members(model)
    trainable = sum(p.requires_grad for p in model.parameters())
    assert sum(map(len, members.values())) == trainable, "a parameter is in no group, or in two"
    if not trainable:
        raise UsageError("the model has no parameter to train: requires_grad is false for all of them")
    if isinstance(config, Muon) and not members["matrices"]:
        raise UsageError(f"optimizer={config.name}: the model has no hidden matrix; use optimizer=adamw")
    return [
        {"name": name, **_options(name, config), "params": params}
        for name, params in members.items()
        if params
    ]


def describe(groups: Iterable[dict[str, Any]]) -> list[GroupSummary]:
    """What each group holds: (name, tensors, parameters, lr, weight_decay), for the run's header."""
    return [
        GroupSummary(
            group["name"],
            len(group["params"]),
            sum(p.numel() for p in group["params"]),
            group["lr"],
            group["weight_decay"],
        )
        for group in groups
    ]


def _members(model: PreTrainedModel) -> dict[str, list[nn.Parameter]]:
    embeddings = _ids(module for module in model.modules() if isinstance(module, nn.Embedding))
    embeddings |= _ids([model.get_input_embeddings()])
    head = _ids([model.get_output_embeddings()])

    members: dict[str, list[nn.Parameter]] = {name: [] for name in NAMES}
    for p in model.parameters():
        if not p.requires_grad:
            continue
        if p.ndim < 2:
            name = "vectors"
        elif id(p) in embeddings:
            name = "embeddings"
        elif id(p) in head:
            name = "head"
        else:
            name = "matrices" if p.ndim == 2 else "tensors"
        members[name].append(p)
    return members


def _ids(modules: Iterable[nn.Module | None]) -> set[int]:
    return {id(p) for module in modules if module is not None for p in module.parameters()}


def _options(name: str, config: AdamW | Muon) -> dict[str, Any]:
    if isinstance(config, Muon) and name == "matrices":
        return {
            "kind": "muon",
            "lr": config.muon_lr,
            "weight_decay": config.muon_weight_decay,
            "momentum": config.momentum,
            "nesterov": config.nesterov,
            "scale": config.scale,
            "ns_steps": config.ns_steps,
            "ns_coefficients": config.ns_coefficients,
        }
    return {
        "kind": "adamw",
        "lr": config.lr,
        "weight_decay": 0.0 if name == "vectors" else config.weight_decay,
        "betas": config.betas,
        "eps": config.eps,
    }
