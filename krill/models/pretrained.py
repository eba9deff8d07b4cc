"""Loads the architecture and the weights of a trained model, for model=pretrained."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from krill.config.schema import PretrainedModelConfig
from krill.config.signature import hash_file
from krill.errors import KrillError, UsageError, get_first_line

WEIGHT_PATTERNS = ("model*.safetensors", "pytorch_model*.bin")
"""Files that transformers loads, in order of preference."""

_USE_OTHER_MODEL = "use model.from=<finished run, model folder or Hub id>"


def resolve_model_folder(model_from: str) -> Path:
    """Returns the folder of config.json and weights.

    `model_from` is the folder of a model, a checkpoint or a finished run, or the id of a model on the Hugging Face
    Hub, which is downloaded.

    Raises:
        UsageError: there is no model.
        KrillError: the Hub cannot be reached and the model is not in its cache.
    """
    path = Path(model_from).expanduser()
    for folder in (path, path / "model"):
        if (folder / "config.json").is_file():
            return folder
    if path.exists() or model_from.count("/") != 1 or model_from.startswith((".", "/", "~")):
        raise UsageError(
            f"model.from={model_from}: not a model (no config.json, relative to {Path.cwd()}); use the folder of a "
            "finished run, of a checkpoint or of a model, or a Hub id (user/name)"
        )
    return _download_model(model_from)


@lru_cache
def _download_model(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja"]))
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UsageError(
            f"model.from={name}: neither a folder nor a model on the Hugging Face Hub; check the name, or log in "
            "(hf auth login) if it is private"
        ) from error
    except Exception as error:
        raise KrillError(
            f"model.from={name}: not a folder, not in the Hub's cache, and the Hub cannot be reached "
            f"({type(error).__name__}: {error}); use a folder"
        ) from error


def hash_model(model_from: str) -> list[str]:
    """Hashes configuration and weights, which identify the model independently of its path."""
    folder = resolve_model_folder(model_from)
    return [hash_file(file) for file in (folder / "config.json", *_find_weights(folder, model_from))]


def _find_weights(folder: Path, model_from: str) -> list[Path]:
    for pattern in WEIGHT_PATTERNS:
        if files := sorted(folder.glob(pattern)):
            return files
    raise UsageError(
        f"model.from={model_from}: {folder} has no weights ({' or '.join(WEIGHT_PATTERNS)}); {_USE_OTHER_MODEL}"
    )


def load_pretrained_model(config: PretrainedModelConfig, vocab_size: int) -> PreTrainedModel:
    """Loads the model with its weights in fp32.

    Raises:
        UsageError: the model cannot be loaded, lacks weights, or has fewer embeddings than the tokenizer has tokens.
    """
    folder = resolve_model_folder(config.from_)
    _find_weights(folder, config.from_)
    model: PreTrainedModel
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        message = get_first_line(error)
        raise UsageError(
            f"model.from={config.from_}: transformers cannot load {folder} ({message}); {_USE_OTHER_MODEL}"
        ) from error
    if info["missing_keys"]:  # transformers would leave them random
        missing = sorted(info["missing_keys"])
        raise UsageError(
            f"model.from={config.from_}: {folder} lacks {len(missing)} weights, the first of them {missing[0]}; "
            f"{_USE_OTHER_MODEL}"
        )
    size = model.get_input_embeddings().weight.shape[0]
    if vocab_size > size:
        raise UsageError(
            f"model.from={config.from_}: the model has {size} embeddings, the tokenizer has {vocab_size} tokens; set "
            "tokenizer=pretrained tokenizer.path=<the tokenizer of that model>"
        )
    return model


def build_pretrained_architecture(config: PretrainedModelConfig) -> PreTrainedModel:
    """Builds the model from its config.json with random weights, for the meta device."""
    model: PreTrainedModel = AutoModelForCausalLM.from_config(load_model_config(config), dtype=torch.float32)
    return model


def load_model_config(config: PretrainedModelConfig) -> Any:
    """Loads the configuration of transformers next to the weights; raises UsageError if it is not usable."""
    folder = resolve_model_folder(config.from_)
    try:
        return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        message = get_first_line(error)
        raise UsageError(
            f"model.from={config.from_}: {folder}/config.json is not usable ({message}); {_USE_OTHER_MODEL}"
        ) from error
