"""The model to export: its folder, its tokenizer, and its signature. What cannot be exported is refused here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from krill.config.signature import compute_signature
from krill.errors import UsageError
from krill.inference.load import ModelFiles, raise_if_tokenizer_is_larger
from krill.models.model_folder import (
    find_weight_files,
    hash_file_once,
    load_config,
    load_weights,
    verify_model,
)
from krill.runs.record import read_status
from krill.tokenizer.artifact import TokenizerFolder, hash_settings, load_tokenizer


@dataclass(frozen=True, eq=False)
class ExportSource:
    """A model whose files are verified."""

    label: str
    """The key and value that named it, for messages."""
    folder: Path
    tokenizer: TokenizerFolder
    config: Any
    """The configuration of transformers."""

    @classmethod
    def open(cls, name_or_path: str, tokenizer_path: str | None) -> ExportSource:
        """Finds and verifies a model and its tokenizer; the weights are not loaded yet.

        Raises UsageError if there is none, if it is damaged, if its weights are not safetensors, or if the tokenizer
        is not that of the model.
        """
        label = f"model={name_or_path}"
        files = ModelFiles.locate(name_or_path, tokenizer_path)
        folder, tokenizer = files.folder, files.tokenizer
        _require_safetensors(folder, label)
        verify_model(folder, label)
        if tokenizer_path is not None and (folder / "tokenizer.json").is_file():
            _require_same_tokenizer(tokenizer_path, tokenizer, load_tokenizer(folder))
        config = load_config(folder, label)
        raise_if_tokenizer_is_larger(tokenizer, config.vocab_size)
        return cls(label, folder, tokenizer, config)

    @property
    def name(self) -> str:
        """The name of the run; of a model that is not of a run, that of its folder."""
        folder = self.folder.absolute()
        for parent in (folder, *folder.parents[:2]):  # model/ of a run, or one of its checkpoints
            if (name := (read_status(parent) or {}).get("name")) is not None:
                return str(name)
        if folder.parent.name == "snapshots":  # the cache of the Hub: models--USER--NAME/snapshots/REVISION
            return folder.parents[1].name.rpartition("--")[2]
        return (folder.parent if folder.name == "model" else folder).name

    def compute_signature(self, *form: Any) -> str:
        """Returns the signature of an export in this form: of the weights, the configuration and the tokenizer."""
        files = [*find_weight_files(self.folder), self.folder / "config.json"]
        hashes = {file.name: hash_file_once(file) for file in files}
        settings = hash_settings(self.tokenizer.folder)
        return compute_signature("export", *form, hashes, self.tokenizer.signature, settings)

    def load_weights(self) -> PreTrainedModel:
        """Returns the model with its weights as they were saved."""
        return load_weights(self.folder, self.label, "auto")


def _require_safetensors(folder: Path, label: str) -> None:
    files = find_weight_files(folder)
    if not files:
        raise UsageError(
            f"{label}: {folder} has no weights (model*.safetensors); use the folder of a complete model"
        )
    if files[0].suffix != ".safetensors":
        raise UsageError(
            f"{label}: {files[0]} is not safetensors; save the model again with save_pretrained of transformers"
        )


def _require_same_tokenizer(path: str, tokenizer: TokenizerFolder, own: TokenizerFolder) -> None:
    if tokenizer.signature != own.signature:
        raise UsageError(
            f"tokenizer={path}: not the tokenizer in {own.folder}, with which the model was trained; its ids mean "
            "other text: leave out tokenizer="
        )
