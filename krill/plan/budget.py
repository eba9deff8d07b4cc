"""Proposes a model, its length, batch and learning rate for a budget of FLOPs or of time, from the presets.

The rules: about 20 tokens per parameter are compute-optimal (Hoffmann et al. 2022, "Chinchilla"). The tokens per step
and the learning rate are those of `krill.config.size_rule`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from krill.config.overrides import EXCLUSIVE_KEYS
from krill.config.run_size import is_rule_on
from krill.config.schema.plan import parse_budget
from krill.config.size_rule import COMPUTE_OPTIMAL_RATIO, compute_batch_of_tokens
from krill.errors import UsageError
from krill.plan.advice import BATCH_FIT_FLOPS, format_fit
from krill.plan.changes import change_plan
from krill.plan.report import format_bytes, format_duration
from krill.plan.run_plan import RunPlan
from krill.tables import fit_table

LARGEST_MICRO_BATCH = 64
"""Rows of a pass to begin with; halved until the run fits."""

MIN_BUDGET_STEPS = 10
"""Fewer steps than this are not a training."""

PROPOSAL_HEADER = (
    "model",
    "parameters",
    "tokens",
    "tok/param",
    "steps",
    "batch",
    "lr",
    "FLOP",
    "memory",
    "fits",
    "time",
)


class Preset(NamedTuple):
    """An option of model=, with the other arguments of the command line."""

    name: str
    plan: RunPlan
    find_lr: Callable[[int], float]
    """Returns the learning rate of a number of steps."""
    batch_tokens: int | None = None
    """The tokens per step that the user has set."""


@dataclass(frozen=True)
class Proposal:
    """A preset and what the budget buys with it."""

    model: str
    overrides: tuple[str, ...]
    plan: RunPlan
    arguments: tuple[str, ...] = ()
    """The other arguments of the command line, without those of the plan."""

    @property
    def distance(self) -> float:
        """How far it is from compute-optimal: the logarithm of the factor in tokens per parameter."""
        return abs(math.log((self.plan.tokens_per_parameter or 1e-9) / COMPUTE_OPTIMAL_RATIO))

    @property
    def command(self) -> str:
        """What to type."""
        keys = {override.partition("=")[0] for override in self.overrides}
        keys.update(key for pair in EXCLUSIVE_KEYS if keys.intersection(pair) for key in pair)
        others = [argument for argument in self.arguments if argument.partition("=")[0] not in keys]
        ranks, hardware = self.plan.setting.world_size, self.plan.config.hardware
        if ranks > 1 and hardware.slurm is None and "hardware=gpus" not in others:
            others.append(f"hardware.processes={ranks}")
        return " ".join(["krill-train", f"model={self.model}", *others, *self.overrides])

    def to_json(self) -> dict[str, Any]:
        """Returns the command and all figures."""
        return {"command": self.command, **self.plan.to_json()}


def propose_runs(presets: Iterable[Preset], budget: str, arguments: Sequence[str] = ()) -> list[Proposal]:
    """Returns a proposal for each preset that the budget can train: those that fit first, nearest to optimal first.

    Args:
        presets: What may be proposed.
        budget: FLOPs, or a time on the devices of the plans.
        arguments: The other arguments of the command line, for the command that is proposed.

    Raises:
        UsageError: the budget does not reach for `MIN_BUDGET_STEPS` steps of any preset, or is larger than that of
            any run that can be configured.
    """
    presets = list(presets)
    proposals = [proposal for preset in presets if (proposal := _propose(preset, budget))]
    if not proposals:
        is_enough = any(
            _compute_budget_flops(preset.plan, budget) >= _count_least_flops(preset) for preset in presets
        )
        raise UsageError(
            f"budget={budget}: more than any preset can be trained for; use a smaller budget, such as budget=1e24"
            if is_enough
            else f"budget={budget}: less than {MIN_BUDGET_STEPS} steps of the smallest preset; use a larger budget, "
            "such as budget=1e15 or budget=1h"
        )
    proposals = [replace(proposal, arguments=tuple(arguments)) for proposal in proposals]
    return sorted(proposals, key=lambda one: (not one.plan.fits, one.distance))


def _propose(preset: Preset, budget: str) -> Proposal | None:
    """Returns what the budget buys with a preset, at the learning rate of that length; None: less than a training."""
    if (proposal := _choose_length(preset, budget)) is None:
        return None
    assert proposal.plan.steps is not None
    changed = change_plan(proposal.plan, (f"lr={preset.find_lr(proposal.plan.steps)}",))
    assert changed is not None
    return replace(proposal, plan=changed)


def _choose_length(preset: Preset, budget: str) -> Proposal | None:
    plan = preset.plan
    amount, unit = parse_budget(budget)
    flops = _compute_budget_flops(plan, budget)
    if flops < _count_least_flops(preset):
        return None
    unit_tokens = plan.config.sequence_len * plan.setting.batch.world_size
    tokens = flops / plan.token_flops.total
    most_rows = round(tokens / unit_tokens / MIN_BUDGET_STEPS)
    rows = max(1, min(round(compute_batch_of_tokens(tokens) / unit_tokens), most_rows))
    if preset.batch_tokens is not None:
        rows = preset.batch_tokens // unit_tokens
    overrides = (
        f"steps={max(MIN_BUDGET_STEPS, round(tokens / (rows * unit_tokens)))}",
        f"batch.tokens={rows * unit_tokens}",
    )
    proposal = _fit(preset.name, plan, overrides)
    return proposal if proposal is None or unit == "flops" else _keep_time(plan, proposal, amount)


def _compute_budget_flops(plan: RunPlan, budget: str) -> float:
    """Returns the FLOPs of a budget, of a time those on the devices of `plan`."""
    amount, unit = parse_budget(budget)
    if unit == "flops":
        return amount
    changed = change_plan(plan, ("steps=1000000",))  # long enough to be compiled
    assert changed is not None
    assert changed.time is not None
    assert changed.flops is not None
    startup = changed.time.parts["startup"]
    return changed.flops * (amount - startup) / (changed.time.total - startup)


def _count_least_flops(preset: Preset) -> float:
    """Returns the FLOPs of `MIN_BUDGET_STEPS` steps of the batch that is set, else of a row on each rank."""
    plan = preset.plan
    tokens = preset.batch_tokens or plan.config.sequence_len * plan.setting.batch.world_size
    return MIN_BUDGET_STEPS * tokens * plan.token_flops.total


def _keep_time(plan: RunPlan, proposal: Proposal, seconds: float) -> Proposal:
    """Returns the proposal with as many steps as fit in `seconds`, whatever its batch and its memory make of them."""
    time, steps = proposal.plan.time, proposal.plan.steps
    assert time is not None
    assert steps is not None
    startup = time.parts["startup"]
    steps = max(MIN_BUDGET_STEPS, int(steps * (seconds - startup) / (time.total - startup)))
    overrides = (f"steps={steps}", *proposal.overrides[1:])
    changed = change_plan(plan, overrides)
    return proposal if changed is None else replace(proposal, overrides=overrides, plan=changed)


def _fit(name: str, plan: RunPlan, overrides: tuple[str, ...]) -> Proposal | None:
    """Returns the proposal with the largest micro batch that fits, without or with gradient checkpointing."""
    proposal = None
    ways = [(), ("hardware.gradient_checkpointing=true",)]
    if plan.setting.world_size > 1 and plan.config.hardware.sharding == "none":
        ways.append(("hardware.sharding=fsdp2", "hardware.gradient_checkpointing=true"))
    for way in ways:
        size = LARGEST_MICRO_BATCH
        while size:
            tried = (*overrides, f"batch.micro_batch_size={size}", *way)
            changed = change_plan(plan, tried)
            if changed is not None:
                proposal = Proposal(name, tried, changed)
                if changed.fits:
                    return proposal
            size //= 2
    return proposal


def format_proposals(
    proposals: list[Proposal],
    budget: str,
    width: int | None,
    has_own_lr: bool = False,
    has_own_batch: bool = False,
) -> list[str]:
    """Returns the lines that krill-plan budget= prints; `has_own_…`: the user has set it."""
    best = proposals[0]
    plan = best.plan
    amount, unit = parse_budget(budget)
    devices = f"{plan.num_devices} × {plan.setting.device.name}"
    text = (
        f"{format_duration(amount)} of {devices}" if unit == "seconds" else f"{amount:.3g} FLOP on {devices}"
    )
    lr, fitted = "lr as set", ""
    if not has_own_lr and not is_rule_on(plan.config.rule):
        lr = "lr without the rule (rule=off)"
    elif not has_own_lr:
        lr = "lr by rule=size (exponent of Bi et al. 2024, fitted from 1e17 to 2e19 FLOP)"
        fitted = "" if (plan.flops or 0) >= BATCH_FIT_FLOPS else "; these FLOPs are outside of that fit"
    batch = "batch as set" if has_own_batch else "batch by the tokens (Li et al. 2025)"
    return [
        f"budget      {text}",
        *fit_table(PROPOSAL_HEADER, [_format_row(one) for one in proposals], width, drop=(7, 3, 5)),
        f"rules       {COMPUTE_OPTIMAL_RATIO} tokens per parameter (Hoffmann et al. 2022); {batch}, {lr}{fitted}",
        f"propose     {best.command}",
    ]


def _format_row(proposal: Proposal) -> list[str]:
    plan = proposal.plan
    return [
        proposal.model,
        f"{plan.architecture.parameters:,}",
        f"{plan.tokens:,}",
        f"{plan.tokens_per_parameter:.3g}",
        f"{plan.steps:,}",
        f"{plan.tokens_per_step:,}",
        f"{plan.config.lr:.2g}",
        f"{plan.flops:.3g}",
        format_bytes(plan.memory.total),
        format_fit(plan),
        format_duration(plan.time.total) if plan.time else "",
    ]
