"""Writes a model as a folder of Hugging Face, which transformers, vLLM and lm-eval load."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import GenerationConfig

from krill.atomic import apply_umask, write_json
from krill.export.dtypes import WEIGHT_DTYPES, cast_weight
from krill.export.source import ExportSource
from krill.export.tokenizer_files import write_tokenizer_files
from krill.training.checkpoint.export import export_model

GENERATION_CONFIG = "generation_config.json"
_OS_ERROR = re.compile(r"\(os error (?P<number>\d+)\)")


def write_hf_folder(source: ExportSource, dtype: str, folder: Path) -> None:
    """Writes weights, configuration, generation_config.json with eos, and the tokenizer to `folder`."""
    model: Any = source.load_weights()
    for name, parameter in model.named_parameters():
        parameter.data = cast_weight(name, parameter.data, dtype)
    tokenizer = source.tokenizer
    ids = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }
    for key, value in ids.items():
        if getattr(model.config, key, None) is None:
            setattr(model.config, key, value)
    model.generation_config = GenerationConfig(**ids)
    model.config.use_cache = True  # in a checkpoint it has the value of training
    try:
        export_model(model, folder, WEIGHT_DTYPES[dtype])
    except SafetensorError as error:  # it has the number of the system's error only in its text
        if (match := _OS_ERROR.search(str(error))) is None:
            raise
        number = int(match["number"])
        raise OSError(number, os.strerror(number), str(folder)) from error
    _restore_generation_settings(source.folder / GENERATION_CONFIG, folder / GENERATION_CONFIG, ids)
    write_tokenizer_files(source, folder)
    apply_umask(folder)


def _restore_generation_settings(own: Path, path: Path, ids: dict[str, int]) -> None:
    """Writes the model's own generation_config.json, with the ids that it lacks.

    transformers loads some that it refuses to save, such as a temperature without do_sample.
    """
    if own.is_file():
        settings = json.loads(own.read_text(encoding="utf-8"))
        write_json(path, settings | {key: value for key, value in ids.items() if settings.get(key) is None})
