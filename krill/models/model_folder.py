"""Loads the weights of a model folder: verified by its manifest, and never by running code that is in it.

A folder may come from anywhere. What its config.json describes is compared with the weights that are there before
transformers builds it: a model of 100 million layers would take all memory, or hours.
"""

from __future__ import annotations

import json
import os
import re
import time
import zipfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from krill.config.signature import hash_file
from krill.errors import KrillError, UsageError
from krill.manifest import CHECKPOINT_MANIFEST, MODEL_MANIFEST, read_file_manifest, verify_file
from krill.sources.hash_cache import MIN_FILE_AGE_NS, get_file_state

WEIGHT_PATTERNS = ("model*.safetensors", "pytorch_model*.bin")
"""Files that transformers loads, in order of preference."""
MODEL_FILE_SUFFIXES = (".json", ".safetensors", ".bin", ".jinja")
"""Suffixes of the files in a checkpoint that a model is loaded from."""
MAX_PARAMETERS_PER_BYTE = 4
"""The number of weights in a byte of the densest format of transformers: 2 bits each."""
_LAYER_KEY = re.compile(r"(?!max_window)(\w+_)?layers|n_layer")
_POSITIVE_KEYS = {
    "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads",
    "vocab_size", "n_embd", "n_head", "n_layer",
}  # fmt: skip
MAX_REASON_LENGTH = 300
_USE_OTHER_MODEL = "use the folder of a finished run or of a complete model, or a Hub id"


def silence_transformers() -> None:
    """Hides the warnings and the progress bars of transformers; krill logs what it does."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def load_weights(folder: Path, source: str, dtype: torch.dtype | str) -> PreTrainedModel:
    """Returns the model in `folder`; `source` is the key and value that named it, for messages.

    Raises UsageError if a file of the model is damaged or missing, or if transformers cannot load it.
    """
    verify_model(folder, source)
    build_without_weights(folder, source)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, trust_remote_code=False
        )
    except Exception as error:  # transformers builds what config.json says: any type of error
        raise _build_load_error(folder, source, error) from error
    if info["missing_keys"]:  # transformers would initialize them randomly
        missing = sorted(info["missing_keys"])
        raise UsageError(
            f"{source}: {folder} lacks {len(missing)} weights, the first of them {missing[0]}; {_USE_OTHER_MODEL}"
        )
    loaded: PreTrainedModel = model
    return loaded


def build_without_weights(folder: Path, source: str) -> PreTrainedModel:
    """Builds the model that config.json describes, in fp32 on the meta device.

    Raises UsageError if transformers cannot build it, or if it has many more parameters than the weights can hold.
    """
    config = load_config(folder, source)
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, trust_remote_code=False
            )
        parameters = sum(parameter.numel() for parameter in model.parameters())
        size = sum(file.stat().st_size for file in find_weight_files(folder))
        if parameters > MAX_PARAMETERS_PER_BYTE * size > 0:
            raise ValueError(f"it describes {parameters:,} parameters, but the weights have {size:,} bytes")
    except Exception as error:  # as in load_weights
        raise _build_load_error(folder, source, error, "/config.json") from error
    return model


def load_config(folder: Path, source: str) -> Any:
    """Loads the configuration of transformers; raises UsageError if it is not usable."""
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        _check_config(folder, dict(values))
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # as in load_weights
        raise _build_load_error(folder, source, error, "/config.json") from error


def find_weight_files(folder: Path) -> list[Path]:
    """Returns the files with weights, of the format that transformers prefers; empty if there are none."""
    for pattern in WEIGHT_PATTERNS:
        if files := sorted(folder.glob(pattern)):
            return files
    return []


def verify_model(folder: Path, source: str) -> None:
    """Raises UsageError if a file of a model that krill has saved is damaged; a folder without a manifest passes."""
    manifest = _find_manifest(folder)
    if manifest is None:
        return
    recorded = read_file_manifest(manifest)
    problems = (
        [f"{manifest} {recorded}"]
        if isinstance(recorded, str)
        else [
            f"{folder / name} {problem}"
            for name, entry in recorded["files"].items()
            if name.endswith(MODEL_FILE_SUFFIXES)
            and (problem := verify_file(folder / name, entry, hash_file_once))
        ]
    )
    if problems:
        raise UsageError(
            f"{source}: {problems[0]}; restore it from a copy or use another model or checkpoint (if the change was "
            f"intended, delete {manifest})"
        )


def hash_file_once(path: Path) -> str:
    """Returns the hex xxh3_128 of a file, which this process reads once unless it is written in between.

    The weights of model.from identify the run, are verified, and are loaded. A file that was written just now is read
    again: the time of its next change may be the same.
    """
    start_ns, status = time.time_ns(), os.stat(path)
    if status.st_ctime_ns > start_ns - MIN_FILE_AGE_NS:
        return hash_file(path)
    return _hash_file_in_state(path.absolute(), tuple(get_file_state(status).values()))


@lru_cache
def _hash_file_in_state(path: Path, state: tuple[int, ...]) -> str:
    """Hashes the file once for each `state`, the attributes that change with its content."""
    return hash_file(path)


def _find_manifest(folder: Path) -> Path | None:
    for path in (folder.absolute(), folder.resolve()):  # either may be the link
        if path.name == "model" and (path.parent / MODEL_MANIFEST).is_file():
            return path.parent / MODEL_MANIFEST
    manifest = folder / CHECKPOINT_MANIFEST
    is_checkpoint = folder.resolve().name.startswith("checkpoint-") or isinstance(
        read_file_manifest(manifest), dict
    )
    return manifest if manifest.is_file() and is_checkpoint else None


def _check_config(folder: Path, values: dict[str, Any]) -> None:
    """Raises ValueError for a size below 1, or more layers than there are tensors in the weights."""
    tensors = sum(_count_tensors(file) for file in find_weight_files(folder))
    for key, value in _iterate_integers(values):
        if key in _POSITIVE_KEYS and value < 1:
            raise ValueError(f"{key} is {value}")
        if _LAYER_KEY.fullmatch(key) and value > tensors > 0:
            raise ValueError(f"{key} is {value:,}, but the weights have only {tensors:,} tensors")


def _count_tensors(file: Path) -> int:
    """Returns the number of tensors in a file, or of an archive at least that; 0 if the file is damaged."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as weights:
                return len(weights.keys())
        with zipfile.ZipFile(file) as archive:
            return len(archive.namelist())
    except (SafetensorError, zipfile.BadZipFile, OSError):
        return 0  # transformers reports it


def _iterate_integers(values: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Yields the integers of config.json by key, with those in nested sections."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _iterate_integers(value)
        elif type(value) is int:
            yield key, value


def _build_load_error(folder: Path, source: str, error: Exception, file: str = "") -> Exception:
    if isinstance(error, (KrillError, MemoryError, torch.OutOfMemoryError)):
        return error
    reason = " ".join(str(error).split())[:MAX_REASON_LENGTH] or type(error).__name__
    if "trust_remote_code" in str(error):
        reason = "it needs Python code from that folder, which krill does not run"
    elif "ignore_mismatched_sizes" in reason:
        reason = "the shapes of the weights are not those of config.json"
    return UsageError(f"{source}: transformers cannot load {folder}{file} ({reason}); {_USE_OTHER_MODEL}")
