"""Sorts a model's parameters into optimizer groups by their role, not by their name.

Embeddings and head are found through the model's `get_input_embeddings` and `get_output_embeddings`, so that GPT-2's
`wte` or NeoX's `embed_out` are recognized as well as Llama's, tied or not. Muon trains the hidden matrices; AdamW
trains embeddings, head, vectors and tensors of more than two dimensions (Jordan et al. 2024, Liu et al. 2025).
Weight decay applies to matrices, embeddings and head, not to vectors (norms, biases).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel

from krill.config.schema import AdamWConfig, CustomOptimizerConfig, MuonConfig, OptimizerConfig
from krill.errors import UsageError
from krill.optim.fused_layouts import infer_layout
from krill.optim.layout import Layout

# Embeddings first: the Trainer logs the learning rate of group 0, whose multiple of `lr` is known.
GROUP_NAMES = ("embeddings", "head", "vectors", "tensors", "adamw_matrices", "matrices")


class GroupSummary(NamedTuple):
    """A row of the table of parameter groups in the run's header."""

    name: str
    tensors: int
    parameters: int
    lr: float
    weight_decay: float


class ParameterAssignment(NamedTuple):
    """The group that a parameter was assigned to."""

    name: str
    shape: tuple[int, ...]
    group: str
    kind: str
    """adamw or muon."""
    projections: list[tuple[int, int]] | None
    """(out, in) of each matrix that Muon orthogonalizes; None with AdamW."""


class _ModuleParameter(NamedTuple):
    """A parameter and the module that holds it."""

    name: str
    """Full name of the module."""
    module: nn.Module
    parameter: nn.Parameter


def build_param_groups(model: PreTrainedModel, config: AdamWConfig | MuonConfig) -> list[dict[str, Any]]:
    """Builds the parameter groups of `model` for `torch.optim.AdamW` or `krill.optim.muon.Muon`.

    Every parameter with `requires_grad` is in exactly one group, a tied embedding in `embeddings`.

    Returns:
        Groups in this order, without empty ones: `embeddings`, `head`, `vectors` (fewer than two dimensions),
        `tensors` (more than two), `adamw_matrices` (selected by `adamw_modules`), `matrices`. With Muon, matrices
        of other layouts follow in separate groups: one per kind of fused projection, named after the module
        (`qkv_proj`), and `conv1d`. Each group has `name`, `kind` (adamw or muon), `params`, `lr`, `weight_decay`
        and the other options of its kind.

    Raises:
        UsageError: no parameter is trainable; or, with Muon, the model has no hidden matrix or a fused one of
            unknown layout, or an entry of `adamw_modules` matches nothing.
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
        raise UsageError("the model has no trainable parameter: requires_grad is false for all of them")
    if isinstance(config, MuonConfig) and not hidden:
        raise UsageError(f"optimizer={config.name}: the model has no hidden matrix; use optimizer=adamw")
    return [
        {"name": name, **_build_group_options(name, config, layouts.get(name)), "params": params}
        for name, params in members.items()
        if params
    ]


def get_lr_multiple(config: OptimizerConfig, group: str) -> float:
    """Returns the learning rate of a group that AdamW trains, as a multiple of `config.lr`."""
    if isinstance(config, CustomOptimizerConfig):
        return 1.0
    multiples = {"embeddings": config.lr_embeddings, "head": config.lr_head, "vectors": config.lr_vectors}
    return multiples.get(group, 1.0)


def summarize_groups(groups: Iterable[dict[str, Any]]) -> list[GroupSummary]:
    """Counts the tensors and parameters of each group, for the run's header."""
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
    """Lists the group of each parameter of `model`, in the order of the groups, for the run's optimizer.json."""
    names = {id(p): name for name, p in model.named_parameters()}
    assignments = []
    for group in groups:
        layout = Layout(*(group[key] for key in Layout._fields)) if group["kind"] == "muon" else None
        for p in group["params"]:
            projections = layout.shapes(*p.shape) if layout else None
            assignments.append(
                ParameterAssignment(names[id(p)], tuple(p.shape), group["name"], group["kind"], projections)
            )
    return assignments


def _sort_parameters(model: PreTrainedModel) -> tuple[dict[str, list[nn.Parameter]], list[_ModuleParameter]]:
    """Returns the trainable parameters by group, and the hidden matrices separately."""
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
    """Yields every trainable parameter once, with the module that holds it."""
    seen: set[int] = set()
    for path, module in model.named_modules():
        for name, p in module.named_parameters(prefix=path, recurse=False):
            if p.requires_grad and id(p) not in seen:
                seen.add(id(p))
                yield _ModuleParameter(name.removesuffix(".weight"), module, p)


def _split_excluded(
    hidden: list[_ModuleParameter], patterns: list[str]
) -> tuple[list[nn.Parameter], list[_ModuleParameter]]:
    """Returns the matrices that match `patterns`, for AdamW, and the others."""
    for pattern in patterns:
        if not any(_matches(matrix.name, pattern) for matrix in hidden):
            names = sorted({matrix.name.rpartition(".")[2] for matrix in hidden})
            raise UsageError(
                f"optimizer.adamw_modules: no module with a hidden matrix matches {pattern!r}. Available: "
                f"{', '.join(names)}"
            )
    is_excluded = [any(_matches(matrix.name, pattern) for pattern in patterns) for matrix in hidden]
    return (
        [matrix.parameter for matrix, excluded in zip(hidden, is_excluded, strict=True) if excluded],
        [matrix for matrix, excluded in zip(hidden, is_excluded, strict=True) if not excluded],
    )


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")


def _group_by_layout(
    members: dict[str, list[nn.Parameter]], hidden: list[_ModuleParameter], config: Any
) -> dict[str, Layout]:
    """Adds the matrices to `members`, one group per layout; returns the layout of each of these groups."""
    layouts: dict[str, Layout] = {}
    for name, module, p in hidden:
        layout = infer_layout(name, module, (p.shape[0], p.shape[1]), config)
        group = name.rpartition(".")[2] if layout.parts else "conv1d" if layout.transposed else "matrices"
        layouts[group] = layout
        members.setdefault(group, []).append(p)
    return layouts


def _get_parameter_ids(modules: Iterable[nn.Module | None]) -> set[int]:
    return {id(p) for module in modules if module is not None for p in module.parameters()}


def _get_decay_multiple(config: AdamWConfig | MuonConfig, group: str) -> float:
    """Returns the weight decay of a group that AdamW trains, as a multiple of `config.weight_decay`."""
    if group == "vectors":
        return 0.0
    return config.weight_decay_embeddings if group in ("embeddings", "head") else 1.0


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
        "lr": config.lr * get_lr_multiple(config, name),
        "weight_decay": config.weight_decay * _get_decay_multiple(config, name),
        "betas": config.betas,
        "eps": config.eps,
        **({"eps_before_correction": config.eps_before_correction} if isinstance(config, MuonConfig) else {}),
    }
