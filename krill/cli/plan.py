"""krill-plan: what a run of krill-train with the same arguments will need, before it starts."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING

from krill.cli import app
from krill.errors import UsageError
from krill.tables import get_terminal_width, print_wrapped

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from krill.config.rule_keys import RuleValue
    from krill.config.schema import PlanConfig
    from krill.launch.invocation import Invocation
    from krill.plan.budget import Preset
    from krill.plan.run_plan import RunPlan
    from krill.plan.timing import TimedPlan


PLAN_KEYS = ("plan", "budget", "format")
"""Keys that krill-train does not have."""


def main() -> int:
    """Runs krill-plan; returns the exit code."""
    return app.main("plan", run_task)


def run_task(invocation: Invocation) -> RunPlan:
    """Returns the plan of one run, and prints it; those of a sweep are printed together (krill.sweep.dry_run)."""
    from krill.config.schema import PlanConfig

    config = invocation.validate(PlanConfig)
    if config.budget is not None:
        return _print_proposals(config, invocation, config.budget)
    plan = make_plan(config, invocation)
    timed = None
    if config.plan.measure:
        plan, timed = _measure(plan, invocation)
    if not invocation.is_sweep_point:
        _print_plan(plan, timed, config.format, invocation.explain_rule())
    return plan


def _measure(plan: RunPlan, invocation: Invocation) -> tuple[RunPlan, TimedPlan]:
    """Times a few steps of `plan` and keeps their figures; returns the plan that counts with them."""
    from krill.launch.measurement import time_training
    from krill.plan.timing import TimedPlan, build_measurement, choose_sizes, compute_waited_share

    sizes = choose_sizes(plan)
    prepared = None
    if plan.text is not None and plan.text.is_exact:
        inputs = invocation.open_inputs(plan.config)
        prepared = (inputs.tokenizer_folder, inputs.store_folder)
    is_compiled = plan.setting.is_compiled(plan.steps)
    timed = time_training(plan.config, sizes, is_compiled, plan.vocab_size, prepared)
    measurement = build_measurement(plan, timed)
    assert plan.machine is not None
    file = plan.machine.keep(measurement)
    return replace(plan, machine=replace(plan.machine, alone=measurement)), TimedPlan(
        measurement,
        tuple(rows for rows, _ in sizes),
        sum(len(size.samples) for size in timed.sizes),
        compute_waited_share(timed),
        file,
    )


def _print_plan(
    plan: RunPlan, timed: TimedPlan | None, format: str, rule_values: Sequence[RuleValue]
) -> None:
    if format == "json":
        from krill.plan.advice import list_advice

        values = plan.to_json() | {"advice": [asdict(advice) for advice in list_advice(plan)]}
        if timed is not None:
            values["calibration"] = timed.to_json()
        print(json.dumps(values, ensure_ascii=False, indent=2, allow_nan=False))
        return
    from krill.plan.report import format_plan

    print_wrapped("\n".join(format_plan(plan, timed, rule_values)))


def _print_proposals(config: PlanConfig, invocation: Invocation, budget: str) -> RunPlan:
    """Prints what the budget buys with each preset of model=; returns the plan that is proposed."""
    from krill.config.overrides import get_override_key
    from krill.config.run_size import is_rule_on
    from krill.plan.budget import format_proposals, propose_runs

    if config.plan.measure:
        raise UsageError("plan.measure=true measures one configuration: leave budget= out")
    if invocation.is_sweep_point:
        raise UsageError("budget= compares the presets itself: leave -m out")
    arguments = [
        override
        for override in _drop_chosen_keys(invocation.overrides)
        if get_override_key(override).partition(".")[0] not in PLAN_KEYS
    ]
    proposals = propose_runs(_iterate_presets(invocation), budget, arguments)
    if config.format == "json":
        values = [proposal.to_json() for proposal in proposals]
        print(json.dumps(values, ensure_ascii=False, indent=2, allow_nan=False))
    else:
        rule_keys = {value.key for value in invocation.explain_rule()}
        lines = format_proposals(
            proposals,
            budget,
            get_terminal_width(sys.stdout),
            has_own_lr=is_rule_on(config.rule) and "lr" not in rule_keys,
            has_own_batch=config.batch.fixed_tokens is not None,
        )
        print_wrapped("\n".join(lines))
    return proposals[0].plan


def _drop_chosen_keys(overrides: Sequence[str]) -> list[str]:
    """Returns `overrides` without what a proposal chooses: the model and the length."""
    from krill.config.overrides import get_override_key

    chosen = ("model", "steps", "epochs")
    return [override for override in overrides if get_override_key(override).partition(".")[0] not in chosen]


def _iterate_presets(invocation: Invocation) -> Iterator[Preset]:
    """Yields each Llama and Qwen3 option of model=, with the other arguments of the command line."""
    from omegaconf.errors import OmegaConfBaseException

    from krill.cli.compose import compose_config
    from krill.config.paths import CONF_DIR, list_config_options
    from krill.config.schema import PlanConfig, TransformerConfig
    from krill.config.validation import validate_config
    from krill.launch.auto_processes import resolve_auto_processes
    from krill.plan.budget import Preset

    folders = invocation.composition.user_folders
    others = _drop_chosen_keys(invocation.overrides)
    for name in sorted(list_config_options("model", [*folders, CONF_DIR])):
        try:
            composed = compose_config("plan", [*others, f"model={name}"], folders)
            preset = resolve_auto_processes(validate_config(PlanConfig, composed))
        except (UsageError, OmegaConfBaseException):  # model=auto needs model.model_type
            continue
        if isinstance(preset.model, TransformerConfig):
            yield Preset(
                name, make_plan(preset, invocation), partial(_find_lr, composed), preset.batch.fixed_tokens
            )


def _find_lr(composed: DictConfig, steps: int) -> float:
    """Returns the learning rate of a composed configuration with another number of steps."""
    changed = copy.deepcopy(composed)
    changed.steps = steps
    return float(changed.lr)


def make_plan(config: PlanConfig, invocation: Invocation) -> RunPlan:
    """Returns the plan of `config` on the device that it names, or on that of this machine."""
    from krill.device_table import get_device, list_devices
    from krill.launch.devices import list_visible_gpus
    from krill.plan.machine import identify_machine
    from krill.plan.run_plan import build_run_plan
    from krill.plan.setting import describe_local_device, query_gpu
    from krill.plan.text import find_training_text, find_vocab_size

    vocab_size = find_vocab_size(config.tokenizer)
    machine = None
    if config.plan.device is not None:
        device = get_device(config.plan.device, config.plan.devices)
    else:
        list_devices(config.plan.devices)  # reports an error in the file, though a CPU is not looked up in it
        gpus = [] if config.device == "cpu" else list_visible_gpus()
        device = describe_local_device(config, gpus, config.plan.devices)
        machine = identify_machine(query_gpu()[0], len(gpus)) if gpus else identify_machine()
    text = find_training_text(config, vocab_size, lambda: invocation.open_inputs(config))
    return build_run_plan(config, vocab_size, device, text, config.plan, machine=machine)
