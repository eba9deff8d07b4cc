"""Exports the trained weights and config.json in the format that transformers and inference servers (vLLM) load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from krill import atomic
from krill.errors import UsageError
from krill.manifest import MODEL_MANIFEST, list_files, write_file_manifest

EXPORT_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def export_model(model: Any, folder: Path, dtype: torch.dtype) -> None:
    """Writes model.safetensors and config.json to `folder`; rounds the parameters of `model` to `dtype` in place.

    Buffers keep their dtype, as when transformers loads a model: RoPE's frequencies are not weights.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    atomic.write_json(folder / "config.json", config | _build_legacy_config_keys(config))


def write_model_manifest(model_folder: Path, run: Path) -> None:
    """Writes the manifest of the files in `model_folder`, which is about to become model/ of `run`."""
    write_file_manifest(run / MODEL_MANIFEST, model_folder, list_files(model_folder))


def raise_if_model_is_link(run: Path) -> None:
    """Raises UsageError if model/ of `run` is a link: a run replaces model/, and what a link names is not its own."""
    for path in (run / "model", run / ".model.partial"):
        if path.is_symlink():
            raise UsageError(
                f"{path} is a symbolic link, and the run writes its model there; remove the link and run the same "
                "command again"
            )


def _build_legacy_config_keys(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the keys that software written for transformers 4 reads: without rope_theta it silently uses 10,000."""
    theta = (config.get("rope_parameters") or {}).get("rope_theta")
    return {"torch_dtype": config["dtype"]} | ({} if theta is None else {"rope_theta": theta})
