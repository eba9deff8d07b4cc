"""model=pretrained: architecture and weights of a trained model, and the tokenizer that it was trained with."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from krill.config.schema import PretrainedModelConfig
from krill.config.signature import hash_file
from krill.errors import KrillError, UsageError

WEIGHT_PATTERNS = ("model*.safetensors", "pytorch_model*.bin")
"""What transformers loads, best first."""


def resolve_model_folder(place: str) -> Path:
    """The folder of config.json and weights: that of a model or checkpoint, a run's model/, or a Hub id's files."""
    path = Path(place).expanduser()
    for folder in (path, path / "model"):
        if (folder / "config.json").is_file():
            return folder
    if path.exists() or place.count("/") != 1 or place.startswith((".", "/", "~")):
        raise UsageError(
            f"model.from={place}: no model there (no config.json, seen from {Path.cwd()}); it is the folder of a "
            "finished run, of a checkpoint or of a model, or a Hub id (user/name)"
        )
    return _download_model(place)


@lru_cache
def _download_model(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja"]))
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UsageError(
            f"model.from={name}: neither a folder here nor a model on the Hugging Face Hub"
        ) from error
    except Exception as error:
        raise KrillError(
            f"model.from={name}: no folder here, not in the Hub's cache, and the Hub cannot be reached "
            f"({type(error).__name__}: {error}); give a folder"
        ) from error


def hash_model(place: str) -> list[str]:
    """Hashes of configuration and weights: what the model is, wherever it lies."""
    folder = resolve_model_folder(place)
    return [hash_file(file) for file in (folder / "config.json", *_find_weights(folder, place))]


def _find_weights(folder: Path, place: str) -> list[Path]:
    found = next((files for pattern in WEIGHT_PATTERNS if (files := sorted(folder.glob(pattern)))), None)
    if found is None:
        raise UsageError(f"model.from={place}: {folder} holds no weights ({' or '.join(WEIGHT_PATTERNS)})")
    return found


def load_pretrained_model(config: PretrainedModelConfig, vocab_size: int) -> PreTrainedModel:
    """The model with its weights in fp32.

    Raises:
        UsageError: it cannot be loaded, lacks weights, or has fewer embeddings than the tokenizer has entries.
    """
    folder = resolve_model_folder(config.from_)
    _find_weights(folder, config.from_)
    model: PreTrainedModel
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        said = str(error).strip().partition("\n")[0]
        raise UsageError(f"model.from={config.from_}: transformers cannot load {folder} ({said})") from error
    if info["missing_keys"]:  # transformers would leave them random
        missing = sorted(info["missing_keys"])
        raise UsageError(
            f"model.from={config.from_}: {folder} lacks {len(missing)} weights, the first is {missing[0]}"
        )
    size = model.get_input_embeddings().weight.shape[0]
    if vocab_size > size:
        raise UsageError(
            f"model.from={config.from_}: it has {size} embeddings, the tokenizer {vocab_size} entries; write "
            "tokenizer=pretrained tokenizer.path=<the tokenizer of that model>"
        )
    return model


def build_pretrained_architecture(config: PretrainedModelConfig) -> PreTrainedModel:
    """The model as its configuration describes it; for the meta device."""
    model: PreTrainedModel = AutoModelForCausalLM.from_config(load_model_config(config), dtype=torch.float32)
    return model


def load_model_config(config: PretrainedModelConfig) -> Any:
    """Returns the configuration of transformers beside the weights; raises UsageError if it is not usable."""
    folder = resolve_model_folder(config.from_)
    try:
        return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        said = str(error).strip().partition("\n")[0]
        raise UsageError(f"model.from={config.from_}: {folder}/config.json is not usable ({said})") from error
