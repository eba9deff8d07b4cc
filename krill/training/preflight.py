"""Checks a training configuration before anything is downloaded, prepared or written."""

from __future__ import annotations

from pathlib import Path

from krill.config.custom_code import import_custom_function
from krill.config.schema import (
    CustomDataConfig,
    CustomFilter,
    CustomModelConfig,
    CustomOptimizerConfig,
    PretrainedModelConfig,
    TrainConfig,
)
from krill.data.inputs import RunInputs
from krill.errors import UsageError
from krill.runs.record import read_status
from krill.tokenizer.artifact import TokenizerFolder, load_tokenizer, resolve_tokenizer_folder
from krill.tokenizer.recipe import compute_vocab_size
from krill.training.accelerate_env import check_accelerate_env
from krill.training.batch_shape import resolve_batch_shape
from krill.training.compute.backends import check_kernels
from krill.training.compute.device import resolve_device, resolve_shard_size, world_size_from_env
from krill.training.compute.setup import ComputeSetup, resolve_compute_setup


def run_preflight_checks(config: TrainConfig, inputs: RunInputs) -> ComputeSetup:
    """Returns how the run is computed. Raises UsageError for a configuration that cannot train as it is."""
    _check_custom_code(config)
    check_accelerate_env()
    if config.trackers:
        from krill.training.metrics.trackers import check_trackers

        check_trackers(config)
    check_kernels(config.hardware, resolve_device(config.device))
    _check_pretrained(config, inputs)
    _check_evaluation(config)
    compute = resolve_compute_setup(config)
    _check_ranks(config, compute.device)
    if config.hardware.context_parallel > 1:
        from krill.training.compute.context_parallel import check_context_parallel

        check_context_parallel(config, compute.attention_backend)
    if compute.precision == "fp8":
        from krill.training.compute.fp8 import check_fp8

        check_fp8(config)
    resolve_batch_shape(config)
    if config.branch is not None:
        from krill.training.checkpoint.branch import check_branch, resolve_branch

        check_branch(resolve_branch(config.branch), config, inputs.tokenizer_signature)
    return compute


def _check_custom_code(config: TrainConfig) -> None:
    """Imports the functions of custom code. Raises UsageError for one that does not exist."""
    sections = (config.model, config.optimizer, config.data, *config.data.filters)
    for section in sections:
        if isinstance(section, (CustomModelConfig, CustomOptimizerConfig)):
            import_custom_function(section.build)
        elif isinstance(section, CustomDataConfig):
            import_custom_function(section.read)
        elif isinstance(section, CustomFilter):
            import_custom_function(section.keep)


def _check_evaluation(config: TrainConfig) -> None:
    """Raises UsageError for tasks that do not exist or are not available here, and for a best_metric of none of them.

    tasks=auto is checked again when the languages of the text are known (`TaskEvaluation`).
    """
    section = config.evaluation
    if section.tasks == "auto" and config.best_metric == "eval_loss":
        return
    from krill.evaluation.evaluate import TASKS, expand_tasks, find_evaluators
    from krill.evaluation.evaluator import EvaluationSettings
    from krill.evaluation.score_metrics import check_best_metric

    tasks = TASKS if section.tasks == "auto" else expand_tasks(section.tasks)
    evaluators = list(find_evaluators(tasks).values())
    for evaluator in evaluators:
        evaluator.identify(EvaluationSettings.from_config(section))
    check_best_metric(config.best_metric, evaluators)


def _check_ranks(config: TrainConfig, device: str) -> None:
    """Raises UsageError when the started ranks differ from the config, exceed the CUDA devices, or do not divide."""
    import torch

    requested, started = config.hardware.processes, world_size_from_env()
    assert requested != "auto"
    if started > 1 and requested != 1 and not config.hardware.slurm and requested != started:
        raise UsageError(
            f"hardware.processes={requested}, but {started} ranks were started (WORLD_SIZE): "
            "leave hardware.processes out"
        )
    if device == "cuda" and started == 1 and requested > torch.cuda.device_count():
        raise UsageError(
            f"hardware.processes={requested}, but this machine has {torch.cuda.device_count()} visible CUDA devices; "
            f"each rank needs one: use hardware.processes={torch.cuda.device_count() or 1}"
        )
    resolve_shard_size(config)


def _check_pretrained(config: TrainConfig, inputs: RunInputs) -> None:
    """Raises UsageError when model.from cannot read the rows: it has another tokenizer, or a shorter context."""
    if not isinstance(config.model, PretrainedModelConfig):
        return
    from krill.models.pretrained import load_pretrained_config, resolve_model_folder

    model_from, model_config = config.model.from_, load_pretrained_config(config.model)
    longest = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and config.model.max_position_embeddings > longest:
        raise UsageError(
            f"model.from={model_from}: the model reads at most {longest} tokens; use sequence_len={longest}"
        )
    folder = resolve_model_folder(model_from)
    if (folder / "tokenizer.json").is_file():
        _check_same_tokenizer(config, inputs, load_tokenizer(folder))
    elif (signature := _read_tokenizer_of_run(folder)) is not None:
        _check_tokenizer_signature(config, inputs, *signature)
    else:
        _check_vocab_size(config, model_config.get_text_config().vocab_size)


def _check_same_tokenizer(config: TrainConfig, inputs: RunInputs, model_tokenizer: TokenizerFolder) -> None:
    """Compares signatures; for tokenizer.path also the vocabularies: the copy in a model folder may add a bos."""
    if inputs.tokenizer_signature == model_tokenizer.signature:
        return
    model_vocab = model_tokenizer.backend.get_vocab(with_added_tokens=True)
    if config.tokenizer.path is not None and _get_tokenizer_vocab(config) == model_vocab:
        return
    raise _build_other_tokenizer_error(config, model_tokenizer.folder)


def _get_tokenizer_vocab(config: TrainConfig) -> dict[str, int]:
    assert config.tokenizer.path is not None
    return load_tokenizer(resolve_tokenizer_folder(config.tokenizer.path)).backend.get_vocab(
        with_added_tokens=True
    )


def _read_tokenizer_of_run(checkpoint: Path) -> tuple[str, str] | None:
    """Returns the signature and folder of the tokenizer of a checkpoint's run; None when status.json has none."""
    tokenizer = (read_status(checkpoint.resolve().parents[1]) or {}).get("tokenizer") or {}
    return (
        (tokenizer["signature"], tokenizer["folder"]) if {"signature", "folder"} <= tokenizer.keys() else None
    )


def _check_tokenizer_signature(config: TrainConfig, inputs: RunInputs, signature: str, folder: str) -> None:
    if inputs.tokenizer_signature != signature:
        raise _build_other_tokenizer_error(config, Path(folder))


def _build_other_tokenizer_error(config: TrainConfig, folder: Path) -> UsageError:
    assert isinstance(config.model, PretrainedModelConfig)
    return UsageError(
        f"model.from={config.model.from_}: it was trained with another tokenizer, its embeddings belong to other "
        f"tokens; use tokenizer=pretrained tokenizer.path={folder}"
    )


def _check_vocab_size(config: TrainConfig, size: int) -> None:
    """Compares vocabulary sizes, the only check there is for a model folder without a tokenizer."""
    path = config.tokenizer.path
    vocab_size = (
        load_tokenizer(resolve_tokenizer_folder(path)).vocab_size
        if path is not None
        else compute_vocab_size(config.tokenizer)
    )
    if vocab_size != size:
        assert isinstance(config.model, PretrainedModelConfig)
        raise UsageError(
            f"model.from={config.model.from_}: it has {size} entries and no tokenizer in its folder, tokenizer="
            f"{config.tokenizer.name} has {vocab_size}; use tokenizer=pretrained "
            "tokenizer.path=<the tokenizer it was trained with>"
        )
