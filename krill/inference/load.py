"""Loads a model and its tokenizer from a run, a model folder, or the Hugging Face Hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from krill.config.paths import expand_home
from krill.errors import UsageError
from krill.inference.defaults import read_model_defaults
from krill.manifest import MODEL_MANIFEST
from krill.models.hub import download_model
from krill.models.model_folder import (
    find_weight_files,
    hash_file_once,
    load_config,
    load_weights,
    verify_model,
)
from krill.runs.checkpoints import list_checkpoints
from krill.runs.record import read_status
from krill.tokenizer.artifact import (
    TokenizerFolder,
    hash_settings,
    load_tokenizer,
    resolve_tokenizer_folder,
)


@dataclass(frozen=True)
class LoadedModel:
    """A model that generates, and what belongs to it."""

    folder: Path
    model: PreTrainedModel
    tokenizer: TokenizerFolder
    defaults: dict[str, Any]
    """Sampling parameters that generation_config.json sets."""


@dataclass(frozen=True)
class ModelFiles:
    """The folders of a model and its tokenizer; the weights are not loaded."""

    name: str
    """The value of the key model, as the user wrote it."""
    folder: Path
    tokenizer: TokenizerFolder

    @property
    def label(self) -> str:
        """The key and value that named the model, for messages."""
        return f"model={self.name}"

    @classmethod
    def locate(cls, name_or_path: str, tokenizer_path: str | None = None) -> ModelFiles:
        """Returns the files of a model, with its tokenizer, or the tokenizer at `tokenizer_path`.

        Raises UsageError if there is no model or no tokenizer.
        """
        folder, tokenizer_folder = locate_model(name_or_path)
        if tokenizer_path is not None:
            tokenizer_folder = resolve_tokenizer_folder(tokenizer_path)
        if tokenizer_folder is None:
            raise UsageError(f"{folder}: no tokenizer.json in the folder of the model; set tokenizer=FOLDER")
        return cls(name_or_path, folder, load_tokenizer(tokenizer_folder))

    def read_context_length(self) -> int:
        """Returns the number of tokens that the model reads at most."""
        length: int = load_config(self.folder, self.label).max_position_embeddings
        return length

    def hash(self) -> list[str]:
        """Returns hashes of all that determines what the model computes, and how it answers by default.

        These are the weights, the configuration, generation_config.json, and the tokenizer with its chat template.
        Raises UsageError if the weights are damaged.
        """
        verify_model(self.folder, self.label)
        names = (self.folder / "config.json", self.folder / "generation_config.json")
        files = [file for file in names if file.is_file()] + find_weight_files(self.folder)
        settings = hash_settings(self.tokenizer.folder)
        return [*map(hash_file_once, files), self.tokenizer.signature, *map(str, sorted(settings.items()))]

    def load(self, device: torch.device, precision: str = "auto") -> PreTrainedModel:
        """Returns the model on `device` in evaluation mode; see `load_model`."""
        raise_if_pickled(self.folder, self.label)
        model: Any = load_weights(self.folder, self.label, _resolve_dtype(precision, device))
        raise_if_tokenizer_is_larger(self.tokenizer, model.config.vocab_size)
        loaded: PreTrainedModel = model.to(device).eval()
        return loaded


def load_model(
    name_or_path: str, device: torch.device, tokenizer_path: str | None = None, precision: str = "auto"
) -> LoadedModel:
    """Returns the model on `device` in evaluation mode, with its tokenizer, or the tokenizer at `tokenizer_path`.

    `precision`: a value of hardware.precision; auto is fp32 on the CPU, and on CUDA the type of the saved weights.

    Raises UsageError if there is no model, if it is damaged, if its weights are not safetensors, or if the tokenizer
    has more entries than the model.
    """
    files = ModelFiles.locate(name_or_path, tokenizer_path)
    model = files.load(device, precision)
    return LoadedModel(files.folder, model, files.tokenizer, read_model_defaults(files.folder))


def raise_if_pickled(folder: Path, label: str) -> None:
    """Raises UsageError for weights in a format of Python objects, pytorch_model.bin; `label` names the model."""
    pickled = next((file for file in find_weight_files(folder) if file.suffix != ".safetensors"), None)
    if pickled is not None:
        raise UsageError(
            f"{label}: {pickled} is not safetensors; save the model again with save_pretrained of transformers"
        )


def raise_if_tokenizer_is_larger(tokenizer: TokenizerFolder, num_embeddings: int) -> None:
    """Raises UsageError if the tokenizer has ids that are not in a model with `num_embeddings` of them."""
    if tokenizer.vocab_size > num_embeddings:
        raise UsageError(
            f"{tokenizer.folder}: the tokenizer has {tokenizer.vocab_size} entries, but the model only "
            f"{num_embeddings}; set tokenizer= to the tokenizer that the model was trained with"
        )


def _resolve_dtype(precision: str, device: torch.device) -> torch.dtype | str:
    if precision == "fp8":
        raise UsageError("hardware.precision=fp8 is for training; use hardware.precision=bf16")
    if precision == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def locate_model(name_or_path: str) -> tuple[Path, Path | None]:
    """Returns the folders of the weights and of the tokenizer (None if there is none).

    For an unfinished run, returns the newest checkpoint. Raises UsageError if there is no model, KrillError if the
    Hub cannot be reached.
    """
    path = expand_home(name_or_path)
    if not path.exists():
        return _download_hub_model(name_or_path)
    if (path / "config.json").is_file():
        return path, _find_tokenizer(path)
    model = path / "model"  # with a manifest it is a finished model, and what is missing in it is an error
    if (model / "config.json").is_file() or (model.is_dir() and (path / MODEL_MANIFEST).is_file()):
        return model, model
    checkpoints = list_checkpoints(path / "checkpoints")
    if checkpoints:
        return checkpoints[-1], _find_tokenizer(checkpoints[-1])
    raise UsageError(
        f"model={name_or_path}: no model in this folder; use the folder of a run (outputs/runs/…) or of a model"
    )


def _find_tokenizer(path: Path) -> Path | None:
    """Returns the folder of the tokenizer of a model: its own, or that of the run whose checkpoint is at `path`."""
    if (path / "tokenizer.json").is_file():
        return path
    for folder in (path, *path.resolve().parents[:2]):
        status = read_status(folder)
        if status and "tokenizer" in status:
            return Path(status["tokenizer"]["folder"])
    return None


def _download_hub_model(name: str) -> tuple[Path, Path]:
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UsageError(f"model={name}: no such folder, and not a Hub id (user/name)")
    folder = download_model(name, "model")
    return folder, folder
