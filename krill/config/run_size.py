"""The size of a run, read from its configuration before or after validation: hidden parameters, tokens and steps.

A value that is missing or not valid counts as not known; the schema reports it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from krill.config.layer_shapes import list_layer_matrices
from krill.config.size_rule import TOKENS_PER_PARAMETER, compute_batch_of_steps

MAX_VALUE = 2**53
"""Larger values of a key are not valid."""

AUTO = "auto"
"""The value of batch.tokens that the rule replaces."""

_SHAPE_KEYS = (
    "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers"
)  # fmt: skip
_WIDTH_KEYS = ("hidden_size", "n_embd")
_DEPTH_KEYS = ("num_hidden_layers", "n_layer")


@dataclass(frozen=True)
class RunSize:
    """The size of a run; None: not known."""

    parameters: int | None
    """Hidden parameters: the matrices of the layers."""
    steps: int | None
    """The number of steps; None with epochs."""
    tokens: int | None
    """The tokens of the steps on one rank; with epochs as many as are compute-optimal, which is an assumption."""


_known_sizes: dict[int, RunSize] | None = None


@contextmanager
def read_sizes_once() -> Iterator[None]:
    """Reads the size of each configuration once, although several keys follow it; none may change meanwhile."""
    global _known_sizes
    _known_sizes = {}
    try:
        yield
    finally:
        _known_sizes = None


def read_run_size(config: Any) -> RunSize:
    """Returns the size of the run that a configuration of krill-train describes, a mapping of its keys."""
    if _known_sizes is None:
        return _read_run_size(config)
    if id(config) not in _known_sizes:
        _known_sizes[id(config)] = _read_run_size(config)
    return _known_sizes[id(config)]


def _read_run_size(config: Any) -> RunSize:
    parameters, steps = count_hidden_parameters(_get(config, "model")), read_steps(config)
    if steps is None:
        has_epochs = parameters is not None and _get(config, "epochs") is not None
        return RunSize(parameters, None, TOKENS_PER_PARAMETER * (parameters or 0) if has_epochs else None)
    batch, sequence_len = _Section(_get(config, "batch")), _as_count(_get(config, "sequence_len"))
    micro_batch = batch.get_count("micro_batch_size")
    if micro_batch is None or sequence_len is None:
        return RunSize(parameters, steps, None)
    unit = micro_batch * sequence_len
    if (accumulation := batch.get_count("gradient_accumulation_steps")) is not None:
        step_tokens = accumulation * unit
    elif (tokens := batch.get("tokens")) == AUTO and is_rule_on(_get(config, "rule")):
        step_tokens = unit * round_accumulation(compute_batch_of_steps(steps, parameters), unit)
    else:
        step_tokens = _as_count(tokens) or unit
    return RunSize(parameters, steps, steps * step_tokens)


def read_steps(config: Any) -> int | None:
    """Returns the number of steps of the run that a configuration describes; None: with epochs."""
    return _as_count(_get(config, "steps"))


def is_rule_on(rule: Any) -> bool:
    """Returns whether a value of the key `rule` applies the rule; YAML reads off as False."""
    return rule not in ("off", False)


def round_accumulation(batch: float, unit: int) -> int:
    """Returns the passes of `unit` tokens each whose tokens are nearest to `batch`, at least one."""
    return max(1, round(batch / unit))


def count_hidden_parameters(model: Any) -> int | None:
    """Returns the entries of the matrices of all layers of a section `model`; None: its shape is not known.

    Those of another architecture than Llama and Qwen3 are about 12 · layers · width².
    """
    section = _Section(model)
    if section.get("family") in ("llama", "qwen3"):
        width, inner, heads, key_heads, layers = map(section.get_count, _SHAPE_KEYS)
        if width is None or inner is None or heads is None or key_heads is None or layers is None:
            return None
        head_dim = section.get_count("head_dim") or width // heads
        shapes = list_layer_matrices(width, inner, heads, key_heads, head_dim)
        return layers * sum(shape.rows * shape.columns for shape in shapes) or None
    for part in (section, _Section(section.get("config")), _Section(section.get("options"))):
        width, layers = (
            next((count for key in keys if (count := part.get_count(key)) is not None), None)
            for keys in (_WIDTH_KEYS, _DEPTH_KEYS)
        )
        if width is not None and layers is not None:
            return 12 * layers * width**2
    return None


class _Section:
    """A section of a configuration. Its plain values are read at once, which takes a third of the time."""

    def __init__(self, section: Any):
        self._section, self._values = section, section
        if OmegaConf.is_config(section):
            self._values = OmegaConf.to_container(section, resolve=False)

    def get(self, key: str) -> Any:
        """Returns the value of a key, None if it is missing."""
        value = self._values.get(key) if isinstance(self._values, dict) else None
        return _get(self._section, key) if isinstance(value, str) and "${" in value else value

    def get_count(self, key: str) -> int | None:
        """Returns the value of a key, None if it is not a positive number."""
        return _as_count(self.get(key))


def _get(config: Any, key: str) -> Any:
    """Returns the value of a key, None if it is missing, or if it follows a key that is."""
    try:
        return config.get(key)
    except OmegaConfBaseException:
        return None


def _as_count(value: Any) -> int | None:
    return value if type(value) is int and 0 < value <= MAX_VALUE else None
