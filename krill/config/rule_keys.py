"""Which keys of a configuration follow `krill.config.size_rule`, and the lines that explain their values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from krill.config import size_rule
from krill.config.run_size import RunSize, read_run_size

if TYPE_CHECKING:
    from krill.config.schema import TrainConfig

RESOLVERS = {
    "lr": "krill.lr_by_size",
    "optimizer.weight_decay": "krill.weight_decay_by_size",
    "scheduler.warmup": "krill.warmup_by_size",
}
"""Key → the resolver of its default. batch.tokens follows the rule where it is auto."""


def follows_rule(unresolved: Mapping[str, Any], key: str) -> bool:
    """Returns whether a composed configuration, as a plain container, leaves a key of `RESOLVERS` to the rule."""
    value: Any = unresolved
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return isinstance(value, str) and RESOLVERS[key] in value


def find_rule_errors(unresolved: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns key and message of an lr_scale without a learning rate that it can multiply."""
    scale, lr = unresolved.get("lr_scale"), unresolved.get("lr")
    if not isinstance(scale, int | float) or scale == 1 or follows_rule(unresolved, "lr"):
        return []
    product = f"={size_rule.round_to_digits(scale * lr, 6):g}" if isinstance(lr, int | float) else "=…"
    message = (
        f"lr_scale={scale:g} multiplies the learning rate that rule gives, but lr={lr} is set; leave lr_scale out "
        f"and set lr{product}, or leave lr out"
    )
    return [("lr_scale", message)]


def explain_rule(
    unresolved: Mapping[str, Any], config: TrainConfig, continued: str | None = None
) -> list[str]:
    """Returns a line for each value that the user has not set: where it comes from, and what sets it.

    Args:
        unresolved: the composed configuration as a plain container.
        config: the validated one.
        continued: the run whose learning rate and weight decay it keeps, if it continues one.
    """
    if config.rule == "off":
        return []
    keys = [key for key in RESOLVERS if follows_rule(unresolved, key)]
    return [
        f"{name:12}{text} ({reason}; {key}=… sets it)"
        for key, name, text, reason in _list_reasons(config, continued)
        if key in keys
    ]


def _list_reasons(config: TrainConfig, continued: str | None) -> Iterator[tuple[str, str, str, str]]:
    """Yields the key, the name of its line, its value, and where that comes from."""
    size, warmup = read_run_size(config.model_dump(by_alias=True)), config.scheduler.warmup
    scale = "" if config.lr_scale == 1 else f", × lr_scale={config.lr_scale:g}"
    is_known = size.parameters is not None and size.tokens is not None
    fixed = "" if is_known else f"fixed: the rule does not know the size of model={config.model.name}"
    if is_known and size.steps is None:
        fixed = "fixed: the rule does not know the steps of epochs="
    if continued is not None:
        lr = decay = f"as in {continued}"
    else:
        lr = f"rule: {_describe_size(size)}{scale}" if is_known else f"{fixed}{scale}"
        decay = fixed or f"rule: of lr, {size.steps:,} steps and their tokens, {_DECAY_LIMITS}"
    yield "lr", "lr", format_rate(config.lr), lr
    yield "optimizer.weight_decay", "decay", f"{config.optimizer.weight_decay:g}", decay
    if warmup < size_rule.WARMUP_FRACTION:
        reason = f"rule: {size_rule.MAX_WARMUP_STEPS:,} steps"
        yield "scheduler.warmup", "warmup", f"{warmup:.2g} of the steps", reason


_DECAY_LIMITS = f"{size_rule.MIN_DECAY:g} to {size_rule.MAX_DECAY:g}"


def _describe_size(size: RunSize) -> str:
    assert size.parameters is not None
    assert size.tokens is not None
    tokens = f"{format_amount(size.tokens)} tokens"
    if size.steps is None:
        tokens += f" (assumed with epochs=: {size_rule.TOKENS_PER_PARAMETER} per parameter)"
    return f"{format_amount(size.parameters)} hidden parameters, {tokens}"


def format_rate(lr: float) -> str:
    """Formats a learning rate with two significant digits, 7.4e-03, or with as many as it has."""
    return f"{lr:.1e}" if float(f"{lr:.1e}") == lr else f"{lr:g}"


def format_amount(count: float) -> str:
    """Formats a number of parameters or tokens: 950, 1.6 k, 1.6 M, 1.6 B."""
    for unit, name in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if count >= unit:
            return f"{count / unit:,.1f}{name}"
    return f"{count:.0f}"
