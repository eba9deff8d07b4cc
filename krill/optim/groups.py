"""Sort a model's parameters into optimizer groups by what they are, not by what they are called.

Embeddings and head are found through the model's own `get_input_embeddings` and `get_output_embeddings`, so
that GPT-2's `wte` or NeoX's `embed_out` are recognized as well as Llama's, tied or not. Muon takes the hidden
matrices; embeddings, head, vectors and tensors of more than two dimensions stay with AdamW (Jordan et al.
2024, Liu et al. 2025). Weight decay applies to matrices and embeddings, not to vectors (norms, biases).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel

from krill.config.schema import AdamWConfig, MuonConfig
from krill.errors import UsageError
from krill.optim.fused_layouts import infer_layout
from krill.optim.layout import Layout

# Embeddings first: the Trainer logs the rate of group 0, which is then `lr` and never the derived `muon_lr`.
GROUP_NAMES = ("embeddings", "head", "vectors", "tensors", "adamw_matrices", "matrices")


class GroupSummary(NamedTuple):
    """One line of the header's table of groups."""

    name: str
    tensors: int
    parameters: int
    lr: float
    weight_decay: float


class ParameterAssignment(NamedTuple):
    """Where one parameter went."""

    name: str
    shape: tuple[int, ...]
    group: str
    kind: str
    """adamw or muon."""
    projections: list[tuple[int, int]] | None
    """(out, in) of each matrix that Muon orthogonalizes by itself; None with AdamW."""


class _ModuleParameter(NamedTuple):
    """A parameter and what holds it."""

    name: str
    """Of the module, in full."""
    module: nn.Module
    parameter: nn.Parameter


def build_param_groups(model: PreTrainedModel, config: AdamWConfig | MuonConfig) -> list[dict[str, Any]]:
    """The groups of `model` for `torch.optim.AdamW` or `krill.optim.muon.Muon`.

    Every parameter with `requires_grad` is in exactly one group, a tied embedding in `embeddings`.

    Returns:
        Groups in this order, empty ones left out: `embeddings`, `head`, `vectors` (fewer than two dimensions),
        `tensors` (more than two), `adamw_matrices` (what `adamw_modules` names), `matrices`. Under Muon,
        matrices that lie otherwise have groups of their own after these: one called after the module for each
        kind of fused projection (`qkv_proj`), and `conv1d`. Each has `name`, `kind` (adamw or muon), `params`,
        `lr`, `weight_decay` and the other options of its kind.

    Raises:
        UsageError: nothing to train; Muon was asked for and the model has no hidden matrix, a fused one that is
            not known, or none that an entry of `adamw_modules` names.
    """
    members, hidden = _sort_parameters(model)
    layouts: dict[str, Layout] = {}
    if isinstance(config, MuonConfig):
        members["adamw_matrices"], hidden = _split_excluded(hidden, config.adamw_modules)
        layouts = _group_by_layout(members, hidden, model.config)
    else:
        members["matrices"] = [matrix.parameter for matrix in hidden]
    trainable = sum(p.requires_grad for p in model.parameters())
    assert sum(map(len, members.values())) == trainable, "a parameter is in no group, or in two"
    if not trainable:
        raise UsageError("the model has no parameter to train: requires_grad is false for all of them")
    if isinstance(config, MuonConfig) and not hidden:
        raise UsageError(f"optimizer={config.name}: the model has no hidden matrix; use optimizer=adamw")
    return [
        {"name": name, **_build_group_options(name, config, layouts.get(name)), "params": params}
        for name, params in members.items()
        if params
    ]


def summarize_groups(groups: Iterable[dict[str, Any]]) -> list[GroupSummary]:
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


def list_parameter_assignments(
    model: nn.Module, groups: Iterable[dict[str, Any]]
) -> list[ParameterAssignment]:
    """Where each parameter of `model` went, in the order of the groups, for the run's optimizer.json."""
    names = {id(p): name for name, p in model.named_parameters()}
    found = []
    for group in groups:
        layout = Layout(*(group[key] for key in Layout._fields)) if group["kind"] == "muon" else None
        for p in group["params"]:
            projections = layout.shapes(*p.shape) if layout else None
            found.append(
                ParameterAssignment(names[id(p)], tuple(p.shape), group["name"], group["kind"], projections)
            )
    return found


def _sort_parameters(model: PreTrainedModel) -> tuple[dict[str, list[nn.Parameter]], list[_ModuleParameter]]:
    """The trainable parameters by group, hidden matrices apart."""
    embeddings = _get_parameter_ids(module for module in model.modules() if isinstance(module, nn.Embedding))
    embeddings |= _get_parameter_ids([model.get_input_embeddings()])
    head = _get_parameter_ids([model.get_output_embeddings()])

    members: dict[str, list[nn.Parameter]] = {name: [] for name in GROUP_NAMES}
    hidden = []
    for matrix in _iterate_parameters(model):
        p = matrix.parameter
        if p.ndim < 2:
            members["vectors"].append(p)
        elif id(p) in embeddings:
            members["embeddings"].append(p)
        elif id(p) in head:
            members["head"].append(p)
        elif p.ndim > 2:
            members["tensors"].append(p)
        else:
            hidden.append(matrix)
    return members, hidden


def _iterate_parameters(model: nn.Module) -> Iterator[_ModuleParameter]:
    """Every trainable parameter once, with the module that holds it."""
    seen: set[int] = set()
    for path, module in model.named_modules():
        for word, p in module.named_parameters(prefix=path, recurse=False):
            if p.requires_grad and id(p) not in seen:
                seen.add(id(p))
                yield _ModuleParameter(word.removesuffix(".weight"), module, p)


def _split_excluded(
    hidden: list[_ModuleParameter], patterns: list[str]
) -> tuple[list[nn.Parameter], list[_ModuleParameter]]:
    """The matrices that `patterns` name, for AdamW, and the others."""
    for pattern in patterns:
        if not any(_matches(matrix.name, pattern) for matrix in hidden):
            words = sorted({matrix.name.rpartition(".")[2] for matrix in hidden})
            raise UsageError(
                f"optimizer.adamw_modules: no module with a hidden matrix is called {pattern!r}; there are: "
                f"{', '.join(words)}"
            )
    named = [any(_matches(matrix.name, pattern) for pattern in patterns) for matrix in hidden]
    return (
        [matrix.parameter for matrix, out in zip(hidden, named, strict=True) if out],
        [matrix for matrix, out in zip(hidden, named, strict=True) if not out],
    )


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")


def _group_by_layout(
    members: dict[str, list[nn.Parameter]], hidden: list[_ModuleParameter], config: Any
) -> dict[str, Layout]:
    """Put the matrices into a group for each layout; the layout of each of these groups."""
    layouts: dict[str, Layout] = {}
    for name, module, p in hidden:
        layout = infer_layout(name, module, (p.shape[0], p.shape[1]), config)
        group = name.rpartition(".")[2] if layout.parts else "conv1d" if layout.transposed else "matrices"
        layouts[group] = layout
        members.setdefault(group, []).append(p)
    return layouts


def _get_parameter_ids(modules: Iterable[nn.Module | None]) -> set[int]:
    return {id(p) for module in modules if module is not None for p in module.parameters()}


def _build_group_options(
    name: str, config: AdamWConfig | MuonConfig, layout: Layout | None
) -> dict[str, Any]:
    if isinstance(config, MuonConfig) and layout is not None:
        return {
            "kind": "muon",
            "lr": config.muon_lr,
            "weight_decay": config.muon_weight_decay,
            "momentum": config.momentum,
            "nesterov": config.nesterov,
            "scale": config.scale,
            "ns_steps": config.ns_steps,
            "ns_coefficients": config.ns_coefficients,
            "ns_dtype": config.ns_dtype,
            "cautious": config.cautious,
            "normuon": config.normuon,
            **layout._asdict(),
        }
    return {
        "kind": "adamw",
        "lr": config.lr,
        "weight_decay": 0.0 if name == "vectors" else config.weight_decay,
        "betas": config.betas,
        "eps": config.eps,
        **({"eps_before_correction": config.eps_before_correction} if isinstance(config, MuonConfig) else {}),
    }
