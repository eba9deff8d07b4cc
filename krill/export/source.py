"""Opens the model to export, and refuses what cannot be exported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from krill.config.signature import compute_signature
from krill.errors import UsageError
from krill.inference.conversation import ChatTemplate
from krill.inference.defaults import read_model_defaults
from krill.inference.load import ModelFiles, raise_if_pickled, raise_if_tokenizer_is_larger
from krill.models.model_folder import find_weight_files, load_config, load_weights, verify_model
from krill.runs.record import read_status
from krill.tokenizer.artifact import TokenizerFolder, load_tokenizer


@dataclass(frozen=True, eq=False)
class ExportSource:
    """A model whose files are verified."""

    files: ModelFiles
    config: Any
    """The configuration of transformers."""

    @classmethod
    def open(cls, name_or_path: str, tokenizer_path: str | None) -> ExportSource:
        """Finds and verifies a model and its tokenizer; the weights are not loaded yet.

        Raises UsageError if there is none, if it is damaged, if its weights are not safetensors, or if the tokenizer
        is not that of the model.
        """
        files = ModelFiles.locate(name_or_path, tokenizer_path)
        _require_safetensors(files)
        verify_model(files.folder, files.label)
        if tokenizer_path is not None and (files.folder / "tokenizer.json").is_file():
            _require_same_tokenizer(tokenizer_path, files.tokenizer, load_tokenizer(files.folder))
        read_model_defaults(files.folder)  # raises UsageError if generation_config.json is damaged
        ChatTemplate.load(files.tokenizer.folder)  # raises UsageError if it is damaged
        config = load_config(files.folder, files.label)
        raise_if_tokenizer_is_larger(files.tokenizer, config.vocab_size)
        return cls(files, config)

    @property
    def label(self) -> str:
        """The key and value that named the model, for messages."""
        return self.files.label

    @property
    def folder(self) -> Path:
        """The folder of the weights."""
        return self.files.folder

    @property
    def tokenizer(self) -> TokenizerFolder:
        """The tokenizer of the model."""
        return self.files.tokenizer

    @property
    def name(self) -> str:
        """The name of the run, or of the folder of a model that is not of a run."""
        folder = self.folder.absolute()
        for parent in (folder, *folder.parents[:2]):  # model/ of a run, or one of its checkpoints
            if (name := (read_status(parent) or {}).get("name")) is not None:
                return str(name)
        if folder.parent.name == "snapshots":  # the cache of the Hub: models--USER--NAME/snapshots/REVISION
            return folder.parents[1].name.rpartition("--")[2]
        return (folder.parent if folder.name == "model" else folder).name

    def compute_signature(self, *form: Any) -> str:
        """Returns the signature of an export of the model in this form."""
        return compute_signature("export", *form, self.files.hash())

    def load_weights(self) -> PreTrainedModel:
        """Returns the model with its weights as they were saved."""
        return load_weights(self.folder, self.label, "auto")


def _require_safetensors(files: ModelFiles) -> None:
    if not find_weight_files(files.folder):
        raise UsageError(
            f"{files.label}: {files.folder} has no weights (model*.safetensors); use the folder of a complete model"
        )
    raise_if_pickled(files.folder, files.label)


def _require_same_tokenizer(path: str, tokenizer: TokenizerFolder, own: TokenizerFolder) -> None:
    if tokenizer.signature != own.signature:
        raise UsageError(
            f"tokenizer={path}: not the tokenizer in {own.folder}, with which the model was trained; its ids mean "
            "other text: leave out tokenizer="
        )
