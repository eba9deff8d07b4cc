"""krill-plan: what a run of krill-train with the same arguments will need, before it starts."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from krill.cli import app
from krill.tables import print_wrapped

if TYPE_CHECKING:
    from krill.config.schema import PlanConfig
    from krill.launch.invocation import Invocation
    from krill.plan.run_plan import RunPlan


def main() -> int:
    """Runs krill-plan; returns the exit code."""
    return app.main("plan", run_task)


def run_task(invocation: Invocation) -> RunPlan:
    """Returns the plan of one run, and prints it; those of a sweep are printed together (krill.sweep.dry_run)."""
    from krill.config.schema import PlanConfig

    config = invocation.validate(PlanConfig)
    plan = make_plan(config, invocation)
    if not invocation.is_sweep_point:
        _print_plan(plan, config.format)
    return plan


def _print_plan(plan: RunPlan, format: str) -> None:
    if format == "json":
        from krill.plan.advice import list_advice

        values = plan.to_json() | {"advice": [asdict(advice) for advice in list_advice(plan)]}
        print(json.dumps(values, ensure_ascii=False, indent=2, allow_nan=False))
        return
    from krill.plan.report import format_plan

    print_wrapped("\n".join(format_plan(plan)))


def make_plan(config: PlanConfig, invocation: Invocation) -> RunPlan:
    """Returns the plan of `config` on the device that it names, or on that of this machine."""
    from krill.device_table import get_device
    from krill.launch.devices import list_visible_gpus
    from krill.plan.run_plan import build_run_plan
    from krill.plan.setting import describe_local_device
    from krill.plan.text import find_training_text, find_vocab_size

    vocab_size = find_vocab_size(config.tokenizer)
    if config.plan.device is not None:
        device = get_device(config.plan.device, config.plan.devices)
    else:
        gpus = [] if config.device == "cpu" else list_visible_gpus()
        device = describe_local_device(config.device, gpus, config.hardware.threads)
    text = find_training_text(config, vocab_size, lambda: invocation.open_inputs(config))
    return build_run_plan(config, vocab_size, device, text, config.plan)
