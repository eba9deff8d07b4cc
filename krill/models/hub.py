"""Downloads the models of the Hugging Face Hub that are named in a configuration."""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path

from krill.errors import KrillError, UsageError, get_first_line
from krill.manifest import HUB_CHECKPOINT_FOLDER
from krill.models.model_folder import WEIGHT_PATTERNS, find_weight_files

_SAFETENSORS, _PICKLES = WEIGHT_PATTERNS


@lru_cache
def download_model(name: str, key: str) -> Path:
    """Returns the folder in the Hub's cache of the model `name`, with its tokenizer; `key` names it in messages.

    Weights that are not safetensors are downloaded only where there are no others, and the checkpoint that a run of
    krill has uploaded is not. Raises UsageError if there is no such model, KrillError if the Hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    download = partial(snapshot_download, name, ignore_patterns=f"{HUB_CHECKPOINT_FOLDER}/*")
    try:
        folder = Path(download(allow_patterns=["*.json", "*.jinja", _SAFETENSORS]))
        if not find_weight_files(folder):
            download(allow_patterns=[_PICKLES], revision=folder.name)
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UsageError(
            f"{key}={name}: neither a folder nor a model on the Hugging Face Hub; check the name, or log in "
            "(hf auth login) if it is private"
        ) from error
    except Exception as error:
        raise KrillError(
            f"{key}={name}: not a folder, not in the Hub's cache, and the Hub cannot be reached "
            f"({type(error).__name__}: {get_first_line(error)}); use a folder, or try again"
        ) from error
    return folder
