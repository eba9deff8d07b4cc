"""The lines and the table that a plan is printed as."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta

from krill.config.rule_keys import RuleValue, format_rule_lines
from krill.config.size_rule import COMPUTE_OPTIMAL_RATIO
from krill.plan.advice import find_fitting_changes, format_fit, format_share, list_advice
from krill.plan.memory import is_state_known
from krill.plan.run_plan import MAX_USEFUL_EPOCHS, RunPlan
from krill.plan.timing import TimedPlan, format_measurement
from krill.tables import fit_table
from krill.training.batch_shape import describe_auto_batch

_LONGEST_SECONDS = 1000 * 365 * 86400

TABLE_HEADER = (
    "point", "parameters", "tokens", "tok/param", "FLOP", "memory", "of", "fits", "disk", "time", "at most", "price",
)  # fmt: skip


def format_bytes(size: float) -> str:
    """Formats a number of bytes in GB (10⁹) or MB (10⁶)."""
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


def format_duration(seconds: float) -> str:
    """Formats a time in seconds, or as hours:minutes:seconds."""
    if seconds > _LONGEST_SECONDS:
        return "more than 1,000 years"
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))


def format_plan(
    plan: RunPlan, timed: TimedPlan | None = None, rule_values: Sequence[RuleValue] = ()
) -> list[str]:
    """Returns the lines that krill-plan prints.

    `timed`: what plan.measure=true has measured; `rule_values`: those that follow the size of the run.
    """
    config = plan.config
    lines = [
        f"name        {config.name}",
        f"model       {format_model(plan)}",
        f"parameters  {_format_parameters(plan)}",
        f"device      {_format_device(plan)}",
        f"batch       {format_batch(plan)}",
        f"tokens      {_format_tokens(plan)}",
        *format_rule_lines(rule_values),
    ]
    calibration = format_measurement(timed) if timed else []
    return [*lines, *format_cost_lines(plan), *calibration, *format_advice(plan)]


def format_advice(plan: RunPlan) -> list[str]:
    """Returns whether the run fits, and the advice on it."""
    lines = [f"fits        {'yes' if plan.fits else 'no'}: {format_share(plan)}"]
    advice = list_advice(plan)
    if not plan.fits and not any(each.kind == "fit" for each in advice):
        lines.append(f"warning     {NOTHING_FITS}")
    return lines + [f"{'advice' if index == 0 else '':12}{each.text}" for index, each in enumerate(advice)]


NOTHING_FITS = (
    "not enough memory, and no change that krill knows makes it fit; use a smaller model= or plan.device="
)


def format_memory_warning(plan: RunPlan) -> list[str]:
    """Returns a warning with the nearest change that fits, if the run does not; a dry run of krill-train has it."""
    if plan.fits:
        return []
    fits = find_fitting_changes(plan)
    if not fits:
        return [f"warning     {NOTHING_FITS}"]
    # krill-train has no plan.*
    overrides = " ".join(fits[0].overrides).replace("plan.count=", "hardware.processes=")
    return [f"warning     not enough memory; use {overrides}: {fits[0].reason}"]


def format_model(plan: RunPlan) -> str:
    """Returns name, number of parameters and vocabulary."""
    return (
        f"{plan.config.model.name}: {plan.architecture.parameters:,} parameters, vocabulary {plan.vocab_size}"
    )


def format_batch(plan: RunPlan) -> str:
    """Returns rows and tokens of a step."""
    reason = describe_auto_batch(plan.config)
    return (
        f"{plan.setting.batch.rows_per_step} rows of {plan.config.sequence_len} = {plan.tokens_per_step:,} tokens "
        f"per step{f' ({reason})' if reason else ''}"
    )


def format_epochs(plan: RunPlan) -> str:
    """Returns the number of epochs that the configuration sets."""
    return "1 epoch" if plan.config.epochs == 1 else f"{plan.config.epochs:g} epochs"


def format_cost_lines(plan: RunPlan) -> list[str]:
    """Returns the lines on FLOPs, time, memory and disk, which krill-train dry_run=true prints as well."""
    return [
        *_format_flops(plan),
        *_format_data(plan),
        *_format_time(plan),
        *_format_memory(plan),
        _format_disk(plan),
    ]


def _format_parameters(plan: RunPlan) -> str:
    counts = plan.architecture.count_parameters()
    total = counts.pop("total")
    return ", ".join(f"{role} {count:,} ({100 * count / total:.1f} %)" for role, count in counts.items())


def _format_device(plan: RunPlan) -> str:
    setting = plan.setting
    count = f"{plan.num_devices} × " if plan.num_devices > 1 else ""
    ranks = f", {setting.world_size} ranks" if setting.world_size > 1 else ""
    sharding = f" ({plan.config.hardware.sharding})" if plan.config.hardware.sharding != "none" else ""
    compiled = ", compiled" if setting.is_compiled(plan.steps) else ""
    power = f", {setting.device.power:g} W" if setting.device.power else ""
    return (
        f"{count}{setting.device.name}{ranks}{sharding}, {setting.precision}{compiled}, loss {setting.loss}; "
        f"{setting.peak_flops / 1e12:.3g} TFLOP/s and {format_bytes(setting.memory_per_rank)} per rank{power} "
        f"({setting.device.source})"
    )


def _format_tokens(plan: RunPlan) -> str:
    if plan.steps is None or plan.tokens is None:
        return f"{format_epochs(plan)}; the number is known once the tokens are prepared"
    about = "" if plan.config.steps is not None or (plan.text and plan.text.is_exact) else "about "
    line = f"{about}{plan.tokens:,} in {plan.steps:,} steps"
    if plan.text and plan.epochs is not None:
        line += f": {plan.epochs:.3g} epochs of {plan.text.tokens:,} ({plan.text.source})"
    return line


def _format_flops(plan: RunPlan) -> Iterator[str]:
    if plan.flops is None or plan.tokens is None:
        return
    each = plan.token_flops
    shares = ", ".join(
        f"{name} {100 * value / each.total:.1f} %"
        for name, value in (("dense", each.dense), ("attention", each.attention), ("head", each.head))
    )
    is_bound = plan.text is None or plan.text.attended is None
    bound = ", at most: short documents take less" if is_bound else ""
    yield f"flops       {plan.flops:.3g}: {plan.tokens:,} tokens × {each.total:.3g} FLOP ({shares}){bound}"


def _format_data(plan: RunPlan) -> Iterator[str]:
    """Yields how the length of the run compares with what is known about data and model size."""
    ratio = plan.tokens_per_parameter
    if ratio is None:
        return
    line = f"data        {ratio:.3g} tokens per parameter; about {COMPUTE_OPTIMAL_RATIO} are compute-optimal"
    if plan.epochs is not None and plan.epochs > MAX_USEFUL_EPOCHS and plan.useful_tokens and plan.tokens:
        line += (
            f"; {plan.epochs:.3g} epochs are worth {100 * plan.useful_tokens / plan.tokens:.0f} % of as many new "
            "tokens"
        )
    yield line


def _format_time(plan: RunPlan) -> Iterator[str]:
    time = plan.time
    if time is None:
        return
    used = time.utilization
    expected = format_duration(time.total)
    span = (
        f" ({format_duration(time.shortest)} to {format_duration(time.longest)})"
        if time.shortest < time.longest
        else ""
    )
    parts = ", ".join(f"{name} {format_duration(seconds)}" for name, seconds in time.parts.items() if seconds)
    mfu = f"{used.mfu:.2g}" if used.mfu <= 1 else "unknown, as the device was measured while it was busy"
    yield f"time        about {expected}{span}: {parts}; MFU {mfu} ({used.text})"
    if plan.price is not None:
        hours = time.total / 3600 * plan.num_devices
        yield (
            f"price       about {plan.price:,.2f}, {plan.price * used.fastest:,.2f} to "
            f"{plan.price * used.slowest:,.2f}: {hours:,.3g} device hours at {plan.options.price_per_hour:g} each"
        )
    if plan.energy is not None:
        yield f"energy      at most {plan.energy:,.3g} kWh for the devices at the limit of their boards"


def _format_memory(plan: RunPlan) -> Iterator[str]:
    memory, available = plan.memory, plan.setting.memory_per_rank
    sizes = {part: format_bytes(size) for part, size in memory.peak.items()}
    if not is_state_known(plan.config.optimizer):
        sizes["optimizer"] = "unknown, as of AdamW"
    parts = ", ".join(f"{part} {size}" for part, size in sizes.items())
    per_rank = " per rank" if plan.setting.world_size > 1 else ""
    yield (
        f"memory      about {format_bytes(memory.total)} of {format_bytes(available)}{per_rank}, at the peak in "
        f"{memory.peak_moment}: {parts}"
    )
    moments = ", ".join(
        f"{name} {format_bytes(sum(parts.values()))}" for name, parts in memory.moments.items()
    )
    yield f"moments     {moments}"


def _format_disk(plan: RunPlan) -> str:
    is_known = is_state_known(plan.config.optimizer)
    bound = "at most" if is_known else "with the state of AdamW"
    parts = ", ".join(
        f"checkpoints {plan.checkpoints} × {format_bytes(plan.checkpoint_bytes)}"
        if part == "checkpoints"
        else f"{part} {format_bytes(size)}"
        for part, size in plan.disk.items()
    )
    return f"disk        {bound} {format_bytes(sum(plan.disk.values()))}: {parts}"


def format_plan_table(labels: Sequence[str], plans: Sequence[RunPlan], width: int | None) -> list[str]:
    """Returns the lines of one table of the plans of a sweep; `width`: of the terminal, None: not a terminal."""
    rows = [_format_row(label, plan) for label, plan in zip(labels, plans, strict=True)]
    has_price = any(plan.price is not None for plan in plans)
    columns = len(TABLE_HEADER) - (not has_price)
    return fit_table(
        TABLE_HEADER[:columns], [row[:columns] for row in rows], width, drop=(10, 8, 3, 6), fold=(0,)
    )


def _format_row(label: str, plan: RunPlan) -> list[str]:
    time = plan.time
    return [
        label,
        f"{plan.architecture.parameters:,}",
        "" if plan.tokens is None else f"{plan.tokens:,}",
        "" if plan.tokens_per_parameter is None else f"{plan.tokens_per_parameter:.3g}",
        "" if plan.flops is None else f"{plan.flops:.3g}",
        format_bytes(plan.memory.total),
        format_bytes(plan.setting.memory_per_rank),
        format_fit(plan),
        format_bytes(sum(plan.disk.values())),
        "" if time is None else format_duration(time.total),
        "" if time is None else format_duration(time.longest),
        "" if plan.price is None else f"{plan.price:,.2f}",
    ]
