"""From what a person names to a model and its tokenizer: a run, a folder, a glob, a Hub id."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel

from krill.errors import KrillError, UsageError
from krill.runs.checkpoints import list_checkpoints
from krill.runs.hub import HUB_CHECKPOINT_FOLDER
from krill.runs.record import read_status
from krill.tokenizer.artifact import TokenizerFolder, load_tokenizer, resolve_tokenizer_folder


def load_model_and_tokenizer(
    name: str, device: torch.device, tokenizer: str | None = None
) -> tuple[PreTrainedModel, TokenizerFolder]:
    """The model on `device`, ready to generate, and its tokenizer (`tokenizer`: another one than that beside it).

    Raises UsageError where `name` is no model, or where the tokenizer has more entries than the model.
    """
    folder, beside = locate_model(name)
    place = resolve_tokenizer_folder(tokenizer) if tokenizer is not None else beside
    if place is None:
        raise UsageError(f"{folder}: no tokenizer.json beside the model; name one: tokenizer=…")
    model: Any
    try:
        model, info = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UsageError(f"model={name}: transformers cannot load {folder} ({_first_line(error)})") from error
    if info["missing_keys"]:  # transformers would leave them random
        missing = sorted(info["missing_keys"])
        raise UsageError(f"model={name}: {folder} lacks {len(missing)} weights, the first is {missing[0]}")
    chosen = load_tokenizer(place)
    if chosen.vocab_size > model.config.vocab_size:
        raise UsageError(
            f"{chosen.folder}: the tokenizer has {chosen.vocab_size} entries, the model {model.config.vocab_size}"
        )
    return model.to(device).eval(), chosen


def locate_model(name: str) -> tuple[Path, Path | None]:
    """Folders of the weights and of the tokenizer (None: not there); of an unfinished run its newest checkpoint."""
    path = Path(name).expanduser()
    if not path.exists() and glob.has_magic(name):
        matches = [Path(match) for match in glob.glob(str(path)) if Path(match).is_dir()]
        if not matches:
            raise UsageError(f"model={name}: no folder matches")
        path = max(matches, key=lambda match: match.stat().st_mtime)
    if not path.exists():
        return _download_hub_model(name)
    if (path / "config.json").is_file():
        return path, path if (path / "tokenizer.json").is_file() else _find_run_tokenizer(path)
    if (path / "model" / "config.json").is_file():
        return path / "model", path / "model"
    checkpoints = list_checkpoints(path / "checkpoints")
    if checkpoints:
        return checkpoints[-1], _find_run_tokenizer(path)
    raise UsageError(f"model={name}: no model there; it is a run's folder (outputs/runs/…) or a model's")


def _find_run_tokenizer(path: Path) -> Path | None:
    """The tokenizer of the run that `path` is, or is a checkpoint of."""
    for folder in (path, *path.resolve().parents[:2]):
        status = read_status(folder)
        if status and "tokenizer" in status:
            return Path(status["tokenizer"]["folder"])
    return None


def _download_hub_model(name: str) -> tuple[Path, Path]:
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UsageError(f"model={name}: no such folder, and no Hub id (user/name)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        wanted = ["*.json", "*.safetensors", "*.model", "*.txt"]
        folder = Path(
            snapshot_download(name, allow_patterns=wanted, ignore_patterns=f"{HUB_CHECKPOINT_FOLDER}/*")
        )
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UsageError(f"model={name}: neither a folder here nor a model on the Hub") from error
    except Exception as error:
        raise KrillError(
            f"model={name}: no folder here, and the Hub cannot be reached ({type(error).__name__})"
        ) from error
    return folder, folder


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
