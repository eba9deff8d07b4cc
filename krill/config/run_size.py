"""The size of a run, read from its configuration before or after validation: hidden parameters and steps.

A value that is missing or not valid counts as not known; the schema reports it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeGuard

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from krill.config.layer_shapes import list_layer_matrices
from krill.config.number_limits import MAX_COUNT, MAX_FLOAT

_SHAPE_KEYS = (
    "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers"
)  # fmt: skip
_WIDTH_KEYS = ("hidden_size", "n_embd")
_DEPTH_KEYS = ("num_hidden_layers", "n_layer")


@dataclass(frozen=True)
class RunSize:
    """The size of a run."""

    parameters: int
    """Hidden parameters: the matrices of the layers."""
    steps: int | None
    """The number of steps; None: with epochs."""


def read_run_size(config: Any) -> RunSize | None:
    """Returns the size of the run that a configuration of krill-train describes, a mapping of its keys.

    None: with rule=off, or where the hidden parameters or both steps and epochs are not known.
    """
    if not is_rule_on(_get(config, "rule")):
        return None
    parameters, steps = count_hidden_parameters(_get(config, "model")), read_steps(config)
    if parameters is None or (steps is None and _get(config, "epochs") is None):
        return None
    return RunSize(parameters, steps)


def read_steps(config: Any) -> int | None:
    """Returns the number of steps of the run that a configuration describes; None: with epochs."""
    return _as_count(_get(config, "steps"))


def is_rule_on(rule: Any) -> bool:
    """Returns whether a value of the key `rule` applies the rule; YAML reads off as False."""
    return rule not in ("off", False)


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


def is_rate(value: Any) -> TypeGuard[float]:
    """Returns whether a value of a key is a rate or a factor that the schema accepts."""
    return isinstance(value, int | float) and 0 < value <= MAX_FLOAT


def _as_count(value: Any) -> int | None:
    return value if type(value) is int and 0 < value <= MAX_COUNT else None
