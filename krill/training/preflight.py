"""What can be found wrong with a training before anything is made."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from krill.config.schema import PretrainedModelConfig, TrainConfig
from krill.data.inputs import RunInputs
from krill.errors import UsageError
from krill.models.pretrained import load_model_config, resolve_model_folder
from krill.tokenizer.artifact import TokenizerFolder, load_tokenizer, resolve_tokenizer_folder
from krill.tokenizer.recipe import compute_vocab_size
from krill.training.accelerate_env import check_accelerate_env
from krill.training.batch_shape import resolve_batch_shape
from krill.training.checkpoint.branch import check_branch, resolve_branch
from krill.training.compute.device import resolve_device, world_size_from_env
from krill.training.compute.liger import check_kernels
from krill.training.compute.setup import ComputeSetup, resolve_compute_setup
from krill.training.metrics.trackers import check_trackers


def run_preflight_checks(config: TrainConfig, inputs: RunInputs) -> ComputeSetup:
    """Returns how the run is computed; raises UsageError for all that is wrong before anything is made."""
    check_accelerate_env()
    check_trackers(config)
    check_kernels(config.hardware, resolve_device(config.device))
    _check_pretrained(config, inputs)
    compute = resolve_compute_setup(config)
    _check_ranks(config, compute.device)
    resolve_batch_shape(config)
    if config.branch is not None:
        check_branch(resolve_branch(config.branch), config, inputs.tokenizer_signature)
    return compute


def _check_ranks(config: TrainConfig, device: str) -> None:
    """Raise UsageError for ranks that were started otherwise than asked for, or that have no device."""
    asked, started = config.hardware.processes, world_size_from_env()
    assert asked != "auto"
    if started > 1 and asked != 1 and not config.hardware.slurm and asked != started:
        raise UsageError(
            f"hardware.processes={asked}, but {started} ranks were started (WORLD_SIZE): leave hardware.processes out"
        )
    if device == "cuda" and started == 1 and asked > torch.cuda.device_count():
        raise UsageError(
            f"hardware.processes={asked}, but this machine has {torch.cuda.device_count()} CUDA devices that may be "
            "used; each rank needs one"
        )


def _check_pretrained(config: TrainConfig, inputs: RunInputs) -> None:
    """Raise UsageError where model.from could not read the rows: another tokenizer, or longer than it reads."""
    if not isinstance(config.model, PretrainedModelConfig):
        return
    place, theirs = config.model.from_, load_model_config(config.model)
    longest = getattr(theirs.get_text_config(), "max_position_embeddings", None)
    if longest is not None and config.model.max_position_embeddings > longest:
        raise UsageError(
            f"model.from={place}: it reads {longest} tokens at most; write sequence_len={longest}"
        )
    beside = resolve_model_folder(place)
    if (beside / "tokenizer.json").is_file():
        _check_same_tokenizer(config, inputs, load_tokenizer(beside))
    elif (signature := _read_tokenizer_of_run(beside)) is not None:
        _check_tokenizer_signature(config, inputs, *signature)
    else:
        _check_vocab_size(config, theirs.get_text_config().vocab_size)


def _check_same_tokenizer(config: TrainConfig, inputs: RunInputs, theirs: TokenizerFolder) -> None:
    """By signature; a ready tokenizer also by its entries: beside a model it may have got a bos in front."""
    if inputs.tokenizer_signature == theirs.signature:
        return
    if config.tokenizer.path is not None and _get_tokenizer_vocab(config) == theirs.backend.get_vocab(
        with_added_tokens=True
    ):
        return
    raise _build_other_tokenizer_error(config, theirs.folder)


def _get_tokenizer_vocab(config: TrainConfig) -> dict[str, int]:
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


def _check_tokenizer_signature(config: TrainConfig, inputs: RunInputs, signature: str, folder: str) -> None:
    if inputs.tokenizer_signature != signature:
        raise _build_other_tokenizer_error(config, Path(folder))


def _build_other_tokenizer_error(config: TrainConfig, folder: Path) -> UsageError:
    assert isinstance(config.model, PretrainedModelConfig)
    return UsageError(
        f"model.from={config.model.from_}: it was trained with another tokenizer, its embeddings would mean other "
        f"tokens; write tokenizer=pretrained tokenizer.path={folder}"
    )


def _check_vocab_size(config: TrainConfig, size: int) -> None:
    """All that can be said of a model without a tokenizer beside it."""
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
