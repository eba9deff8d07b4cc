"""Which keys of a configuration follow `krill.config.size_rule`, and the lines that explain their values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from krill.config import size_rule
from krill.config.run_size import RunSize, is_rate, is_rule_on, read_run_size

if TYPE_CHECKING:
    from krill.config.schema import TrainConfig

RESOLVERS = {
    "lr": "krill.lr_by_size",
    "optimizer.weight_decay": "krill.weight_decay_by_size",
    "scheduler.warmup": "krill.warmup_by_size",
}
"""Key → the resolver of its default. batch.tokens follows the rule where it is auto."""

LINE_NAMES = {
    "lr": "lr", "optimizer.weight_decay": "decay", "scheduler.warmup": "warmup", "batch.tokens": "batch"
}  # fmt: skip
"""Key → the name of the line that explains it."""


class RuleValue(NamedTuple):
    """A value that the user has not set."""

    key: str
    text: str
    """The value, formatted."""
    source: str
    """Where it comes from."""


class InheritedValues(NamedTuple):
    """The values of another run that a run keeps, because it continues that one."""

    run: str
    """The folder of the other run."""
    keys: frozenset[str]


def follows_rule(unresolved: Mapping[str, Any], key: str) -> bool:
    """Returns whether a composed configuration, as a plain container, leaves a key of `RESOLVERS` to the rule."""
    value: Any = unresolved
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return isinstance(value, str) and RESOLVERS[key] in value


def find_rule_errors(unresolved: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns key and message of a valid lr_scale without a learning rate that it can multiply."""
    scale, lr = unresolved.get("lr_scale"), unresolved.get("lr")
    if not is_rate(scale) or scale == 1 or follows_rule(unresolved, "lr"):
        return []
    product = f"={size_rule.round_to_digits(scale * lr, 6):g}" if is_rate(lr) else "=…"
    message = (
        f"lr_scale={scale:g} multiplies the learning rate that rule gives, but lr={lr} is set; set lr{product} and "
        "lr_scale=1, or leave lr out"
    )
    return [("lr_scale", message)]


def explain_rule(
    unresolved: Mapping[str, Any], config: TrainConfig, inherited: InheritedValues | None = None
) -> list[RuleValue]:
    """Returns the values that the user has not set, with their sources; nothing with rule=off.

    Args:
        unresolved: the composed configuration as a plain container.
        config: the validated one.
        inherited: what it has from the run that it continues, if it continues one.
    """
    if not is_rule_on(config.rule):
        return []
    values = [
        value for value in _list_rule_values(config, read_run_size(config.model_dump(by_alias=True)))
        if follows_rule(unresolved, value.key)
    ]  # fmt: skip
    if inherited is None:
        return values
    if "batch.tokens" in inherited.keys:
        values.append(RuleValue("batch.tokens", f"{config.batch.tokens:,} tokens per step", ""))
    source = f"as in {inherited.run}"
    return [value._replace(source=source) if value.key in inherited.keys else value for value in values]


def _list_rule_values(config: TrainConfig, size: RunSize | None) -> Iterator[RuleValue]:
    source = f"fixed: the rule does not know the size of model={config.model.name}"
    if size is not None:
        assumed = f"assuming {size_rule.COMPUTE_OPTIMAL_RATIO} tokens for each"
        length = assumed if size.steps is None else f"{size.steps:,} steps"
        source = f"rule: {format_amount(size.parameters)} hidden parameters, {length}"
    scale = "" if config.lr_scale == 1 else f", × lr_scale={config.lr_scale:g}"
    lr_source = (
        source if config.model.family != "pretrained" else "fixed, for weights from scratch: use a lower one"
    )
    yield RuleValue("lr", format_rate(config.lr), lr_source + scale)
    yield RuleValue("optimizer.weight_decay", f"{config.optimizer.weight_decay:g}", source)
    limit = f"at most {size_rule.MAX_WARMUP_STEPS:,} steps"
    yield RuleValue("scheduler.warmup", f"{config.scheduler.warmup:.2g} of the steps", f"rule: {limit}")


def format_rule_lines(values: Iterable[RuleValue]) -> list[str]:
    """Returns a line for each value: what it is, where it comes from, and what sets it."""
    return [f"{LINE_NAMES[key]:12}{text} ({source}; {key}=… sets it)" for key, text, source in values]


def format_rate(lr: float) -> str:
    """Formats a learning rate with two significant digits, 7.4e-03, or with as many as it has."""
    return f"{lr:.1e}" if float(f"{lr:.1e}") == lr else f"{lr:g}"


def format_amount(count: float) -> str:
    """Formats a number of parameters or tokens: 950, 1.6 k, 1.6 M, 1.6 B."""
    for unit, name in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if count >= unit:
            return f"{count / unit:,.1f}{name}"
    return f"{count:.0f}"
