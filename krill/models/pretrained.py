"""model=pretrained: architecture and weights of a trained model, and the tokenizer that it was trained with."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from krill.config.schema import PretrainedModelConfig, TrainConfig
from krill.config.signature import hash_file
from krill.errors import KrillError, UsageError
from krill.tokenizer.artifact import TokenizerFolder, load_tokenizer

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
    model: PreTrainedModel = AutoModelForCausalLM.from_config(_load_config(config), dtype=torch.float32)
    return model


def _load_config(config: PretrainedModelConfig) -> Any:
    folder = resolve_model_folder(config.from_)
    try:
        return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        said = str(error).strip().partition("\n")[0]
        raise UsageError(f"model.from={config.from_}: {folder}/config.json is not usable ({said})") from error


def check_pretrained(config: TrainConfig) -> None:
    """Raise UsageError where model.from could not read the rows: another tokenizer, or longer than it reads."""
    if not isinstance(config.model, PretrainedModelConfig):
        return
    place, theirs = config.model.from_, _load_config(config.model)
    longest = getattr(theirs.get_text_config(), "max_position_embeddings", None)
    if longest is not None and config.model.max_position_embeddings > longest:
        raise UsageError(
            f"model.from={place}: it reads {longest} tokens at most; write sequence_len={longest}"
        )
    beside = resolve_model_folder(place)
    if (beside / "tokenizer.json").is_file():
        _check_same_tokenizer(config, load_tokenizer(beside))
    elif (signature := _read_tokenizer_of_run(beside)) is not None:
        _check_tokenizer_signature(config, place, *signature)
    else:
        _check_vocab_size(config, theirs.get_text_config().vocab_size)


def _check_same_tokenizer(config: TrainConfig, theirs: TokenizerFolder) -> None:
    """By signature; a ready tokenizer also by its entries: beside a model it may have got a bos in front."""
    from krill.data.cache import compute_tokenizer_signature

    if compute_tokenizer_signature(config) == theirs.signature:
        return
    if config.tokenizer.path is not None and _get_tokenizer_vocab(config) == theirs.backend.get_vocab(
        with_added_tokens=True
    ):
        return
    raise _build_other_tokenizer_error(config, theirs.folder)


def _get_tokenizer_vocab(config: TrainConfig) -> dict[str, int]:
    from krill.tokenizer.artifact import resolve_tokenizer_folder

    assert config.tokenizer.path is not None
    return load_tokenizer(resolve_tokenizer_folder(config.tokenizer.path)).backend.get_vocab(
        with_added_tokens=True
    )


def _read_tokenizer_of_run(checkpoint: Path) -> tuple[str, str] | None:
    """Signature and folder of the tokenizer of the run that a checkpoint is of."""
    status = checkpoint.resolve().parents[1] / "status.json"
    try:
        tokenizer = json.loads(status.read_text(encoding="utf-8"))["tokenizer"]
        return tokenizer["signature"], tokenizer["folder"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _check_tokenizer_signature(config: TrainConfig, place: str, signature: str, folder: str) -> None:
    from krill.data.cache import compute_tokenizer_signature

    if compute_tokenizer_signature(config) != signature:
        raise _build_other_tokenizer_error(config, Path(folder))


def _build_other_tokenizer_error(config: TrainConfig, folder: Path) -> UsageError:
    assert isinstance(config.model, PretrainedModelConfig)
    return UsageError(
        f"model.from={config.model.from_}: it was trained with another tokenizer, its embeddings would mean other "
        f"tokens; write tokenizer=pretrained tokenizer.path={folder}"
    )


def _check_vocab_size(config: TrainConfig, size: int) -> None:
    """All that can be said of a model without a tokenizer beside it."""
    from krill.tokenizer.artifact import resolve_tokenizer_folder
    from krill.tokenizer.recipe import compute_vocab_size

    path = config.tokenizer.path
    ours = (
        load_tokenizer(resolve_tokenizer_folder(path)).vocab_size
        if path is not None
        else compute_vocab_size(config.tokenizer)
    )
    if ours != size:
        assert isinstance(config.model, PretrainedModelConfig)
        raise UsageError(
            f"model.from={config.model.from_}: it has {size} entries and no tokenizer beside it, tokenizer="
            f"{config.tokenizer.name} has {ours}; write tokenizer=pretrained tokenizer.path=<that of its training>"
        )
