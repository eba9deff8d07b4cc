"""What several runs have set otherwise, beside what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml


def diff_configs(folders: Sequence[Path]) -> dict[str, list[Any]]:
    """Dotted key of the configuration → its value in each run, of those keys that differ; None: no such key."""
    configs = [flatten_config(_read_config(folder)) for folder in folders]
    keys = dict.fromkeys(key for config in configs for key in config)
    values = {key: [config.get(key) for config in configs] for key in keys}
    return {key: each for key, each in values.items() if any(value != each[0] for value in each)}


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    return config if isinstance(config, dict) else {}


def flatten_config(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key → value, of everything that is no mapping itself."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= (
            flatten_config(value, f"{prefix}{key}.")
            if isinstance(value, dict) and value
            else {f"{prefix}{key}": value}
        )
    return found
