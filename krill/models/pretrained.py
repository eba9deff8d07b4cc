"""Loads the architecture and the weights of a trained model, for model=pretrained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from krill.config.paths import expand_home
from krill.config.schema import PretrainedModelConfig
from krill.errors import UsageError
from krill.models.hub import download_model
from krill.models.model_folder import (
    WEIGHT_PATTERNS,
    build_without_weights,
    find_weight_files,
    hash_file_once,
    load_config,
    load_weights,
    verify_model,
)


def resolve_model_folder(model_from: str) -> Path:
    """Returns the folder of config.json and weights.

    `model_from` is the folder of a model, a checkpoint or a finished run, or the id of a model on the Hugging Face
    Hub, which is downloaded.

    Raises:
        UsageError: there is no model.
        KrillError: the Hub cannot be reached and the model is not in its cache.
    """
    path = expand_home(model_from)
    for folder in (path, path / "model"):
        if (folder / "config.json").is_file():
            return folder
    if path.exists() or model_from.count("/") != 1 or model_from.startswith((".", "/", "~")):
        raise UsageError(
            f"model.from={model_from}: not a model (no config.json, relative to {Path.cwd()}); use the folder of a "
            "finished run, of a checkpoint or of a model, or a Hub id (user/name)"
        )
    return download_model(model_from, "model.from")


def hash_model(model_from: str) -> list[str]:
    """Hashes configuration and weights, which identify the model independently of its path.

    Raises UsageError if there are no weights, or if they are damaged.
    """
    folder = resolve_model_folder(model_from)
    verify_model(folder, f"model.from={model_from}")
    return [hash_file_once(file) for file in (folder / "config.json", *_find_weights(folder, model_from))]


def _find_weights(folder: Path, model_from: str) -> list[Path]:
    if files := find_weight_files(folder):
        return files
    raise UsageError(
        f"model.from={model_from}: {folder} has no weights ({' or '.join(WEIGHT_PATTERNS)}); use "
        "model.from=<finished run, model folder or Hub id>"
    )


def load_pretrained_model(config: PretrainedModelConfig, vocab_size: int) -> PreTrainedModel:
    """Loads the model with its weights in fp32.

    Raises:
        UsageError: the model cannot be loaded, is damaged, lacks weights, or has fewer embeddings than the tokenizer
            has tokens.
    """
    folder = resolve_model_folder(config.from_)
    _find_weights(folder, config.from_)
    model = load_weights(folder, f"model.from={config.from_}", torch.float32)
    size = model.get_input_embeddings().weight.shape[0]
    if vocab_size > size:
        raise UsageError(
            f"model.from={config.from_}: the model has {size} embeddings, the tokenizer has {vocab_size} tokens; set "
            "tokenizer=pretrained tokenizer.path=<the tokenizer of that model>"
        )
    return model


def build_pretrained_architecture(config: PretrainedModelConfig) -> PreTrainedModel:
    """Builds the model from its config.json without weights, on the meta device."""
    return build_without_weights(resolve_model_folder(config.from_), f"model.from={config.from_}")


def load_pretrained_config(config: PretrainedModelConfig) -> Any:
    """Loads the configuration of transformers next to the weights; raises UsageError if it is not usable."""
    return load_config(resolve_model_folder(config.from_), f"model.from={config.from_}")
