"""The finished weights and their config.json, as transformers and those who serve plain weights (vLLM) read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch

from krill import atomic

EXPORT_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def export_model(model: Any, folder: Path, dtype: Literal["fp32", "bf16"]) -> None:
    """Write model.safetensors and config.json to `folder`; the parameters of `model` are rounded to `dtype` in place.

    Buffers stay as they are, as they do when transformers loads a model: the angles of RoPE are no weights.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(EXPORT_DTYPES[dtype])
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    atomic.write_json(folder / "config.json", config | _legacy_config_keys(config))


def _legacy_config_keys(config: dict[str, Any]) -> dict[str, Any]:
    """What readers that go by transformers 4 look for: without rope_theta they would silently take 10,000."""
    theta = (config.get("rope_parameters") or {}).get("rope_theta")
    return {"torch_dtype": config["dtype"]} | ({} if theta is None else {"rope_theta": theta})
