"""Writes the files of a model's tokenizer, in the form that every loader knows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from krill.atomic import write_json
from krill.export.source import ExportSource
from krill.tokenizer.artifact import TOKENIZER_FILES, refresh_record

NEW_TOKENIZER_CLASSES = (None, "TokenizersBackend")
"""Classes in a tokenizer_config.json that only transformers 5 loads."""


def write_tokenizer_files(source: ExportSource, folder: Path) -> None:
    """Writes tokenizer.json and its settings: those of the model, else as training saves them with a model."""
    origin = source.tokenizer.folder
    if origin == source.folder:
        for name in TOKENIZER_FILES:
            if (origin / name).is_file():
                shutil.copyfile(origin / name, folder / name)
    else:
        source.tokenizer.copy_to(folder, source.config.max_position_embeddings)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_json(path, _convert_settings(settings))
    refresh_record(folder)


def _convert_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns a tokenizer_config.json that transformers 4 reads as well; 5 gives it the same meaning.

    4 fails on a list of extra_special_tokens and does not know the class TokenizersBackend. PreTrainedTokenizerFast
    uses tokenizer.json unchanged in both.
    """
    converted = dict(settings)
    if converted.get("tokenizer_class") in NEW_TOKENIZER_CLASSES:
        converted["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(converted.get("extra_special_tokens"), list):
        converted["additional_special_tokens"] = converted.pop("extra_special_tokens")
    return converted
