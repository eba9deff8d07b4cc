"""Compares the configurations of several runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from krill.runs.record import read_config


def diff_configs(folders: Sequence[Path]) -> dict[str, list[Any]]:
    """Returns each dotted key whose value differs, with its value in each run; None: the run lacks the key."""
    configs = [flatten_config(read_config(folder)) for folder in folders]
    keys = dict.fromkeys(key for config in configs for key in config)
    values = {key: [config.get(key) for config in configs] for key in keys}
    return {
        key: run_values
        for key, run_values in values.items()
        if any(value != run_values[0] for value in run_values)
    }


def flatten_config(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns dotted key → value for all values except nested mappings, which are flattened."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= (
            flatten_config(value, f"{prefix}{key}.")
            if isinstance(value, dict) and value
            else {f"{prefix}{key}": value}
        )
    return flat
