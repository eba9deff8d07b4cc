"""The size of a run, read from its configuration before or after validation: hidden parameters, tokens and steps.

A value that is missing or not valid counts as not known; the schema reports it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf.errors import OmegaConfBaseException

from krill.config.layer_shapes import list_layer_matrices
from krill.config.size_rule import TOKENS_PER_PARAMETER, compute_batch_of_steps, compute_batch_of_tokens

MAX_VALUE = 2**53
"""Larger values of a key are not valid."""

AUTO = "auto"
"""The value of batch.tokens that the rule replaces."""

_WIDTH_KEYS = ("hidden_size", "n_embd")
_DEPTH_KEYS = ("num_hidden_layers", "n_layer")


@dataclass(frozen=True)
class RunSize:
    """The size of a run; None: not known."""

    parameters: int | None
    """Hidden parameters: the matrices of the layers."""
    step_tokens: int | None
    """Tokens of a step on one rank."""
    steps: float | None
    """The number of steps; of a run of epochs, the number that `tokens` would take."""
    tokens: float | None
    has_assumed_tokens: bool = False
    """Whether `tokens` are assumed, as many as are compute-optimal, because the run has epochs."""


def read_run_size(config: Any) -> RunSize:
    """Returns the size of the run that a configuration of krill-train describes, a mapping of its keys."""
    batch = _get(config, "batch")
    steps = _get_count(config, "steps")
    parameters = count_hidden_parameters(_get(config, "model"))
    micro_batch, sequence_len = _get_count(batch, "micro_batch_size"), _get_count(config, "sequence_len")
    if micro_batch is None or sequence_len is None:
        return RunSize(parameters, None, steps, None)
    unit = micro_batch * sequence_len
    if (accumulation := _get_count(batch, "gradient_accumulation_steps")) is not None:
        step_tokens = accumulation * unit
    elif (tokens := _get(batch, "tokens")) == AUTO and is_rule_on(_get(config, "rule")):
        step_tokens = unit * round_accumulation(compute_batch(steps, parameters), unit)
    else:
        step_tokens = _as_count(tokens) or unit
    if steps is not None:
        return RunSize(parameters, step_tokens, steps, steps * step_tokens)
    if parameters is None or _get(config, "epochs") is None:
        return RunSize(parameters, step_tokens, None, None)
    total = TOKENS_PER_PARAMETER * parameters
    return RunSize(parameters, step_tokens, max(1.0, total / step_tokens), total, has_assumed_tokens=True)


def is_rule_on(rule: Any) -> bool:
    """Returns whether a value of the key `rule` applies the rule; YAML reads off as False."""
    return rule not in ("off", False)


def compute_batch(steps: int | None, parameters: int | None) -> float | None:
    """Returns the tokens per step by the rule, of a run of `steps` steps or else on as many tokens as are
    compute-optimal for its hidden parameters; None: neither is known."""
    if steps is not None:
        return compute_batch_of_steps(steps)
    return None if parameters is None else compute_batch_of_tokens(TOKENS_PER_PARAMETER * parameters)


def round_accumulation(batch: float | None, unit: int) -> int:
    """Returns the passes of `unit` tokens each whose tokens are nearest to `batch`, at least one."""
    return 1 if batch is None else max(1, round(batch / unit))


def count_hidden_parameters(model: Any) -> int | None:
    """Returns the entries of the matrices of all layers of a section `model`; None: its shape is not known.

    Those of another architecture than Llama and Qwen3 are about 12 · layers · width².
    """
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    if _get(model, "family") in ("llama", "qwen3"):
        sizes = [_get_count(model, name) for name in names]
        layers = _get_count(model, "num_hidden_layers")
        width, inner, heads, key_heads = sizes
        if width is None or inner is None or heads is None or key_heads is None or layers is None:
            return None
        head_dim = _get_count(model, "head_dim") or width // heads
        shapes = list_layer_matrices(width, inner, heads, key_heads, head_dim)
        return layers * sum(shape.rows * shape.columns for shape in shapes) or None
    for section in (model, _get(model, "config"), _get(model, "options")):
        width, layers = (
            next((count for key in keys if (count := _get_count(section, key)) is not None), None)
            for keys in (_WIDTH_KEYS, _DEPTH_KEYS)
        )
        if width is not None and layers is not None:
            return 12 * layers * width**2
    return None


def _get_count(section: Any, key: str) -> int | None:
    return _as_count(_get(section, key))


def _as_count(value: Any) -> int | None:
    return value if type(value) is int and 0 < value <= MAX_VALUE else None


def _get(section: Any, key: str) -> Any:
    """Returns the value of a key, None if it is missing, or if it follows a key that is."""
    if not isinstance(section, Mapping) and not hasattr(section, "get"):
        return None
    try:
        return section.get(key)
    except OmegaConfBaseException:
        return None
