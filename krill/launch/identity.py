"""The identity of what a command makes: folders are named by the signature of what is in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from krill.config import custom_code
from krill.config.paths import expand_home
from krill.config.schema import EvaluateConfig, InferConfig, PretrainedModelConfig, Section, TrainConfig
from krill.config.signature import compute_signature, hash_file
from krill.errors import UsageError
from krill.evaluation.custom_tasks import CustomTaskSource, list_custom_tasks
from krill.inference.prompts import check_prompts_path
from krill.runs.checkpoints import list_checkpoints
from krill.text.documents import compute_data_signature
from krill.training.batch_shape import resolve_batch_shape

if TYPE_CHECKING:
    from krill.data.inputs import RunInputs


def compute_identity(command: str, config: Section, inputs: RunInputs | None = None) -> str:
    """Returns the signature of what `command` makes of `config`; text counts by its content, not by its path.

    `inputs`: those of `config`, opened already; None: a command on a trained model, which has none.
    """
    if isinstance(config, InferConfig):
        return _compute_answers_identity(config)
    if isinstance(config, EvaluateConfig):
        return _compute_evaluation_identity(config)
    if not isinstance(config, TrainConfig):
        return compute_signature(command, 1, config)
    if command == "plan":
        return compute_signature(command, 1, config.model_dump(mode="json"))
    assert inputs is not None
    if command == "tokenizer":
        return inputs.tokenizer_signature
    if command == "train":
        return _compute_run_identity(config, inputs)
    task = config.data.task
    if task is None:
        return inputs.store_signature
    return compute_signature(command, 1, inputs.store_signature, config.data.num_tasks, task)


def should_repeat(config: Section) -> bool:
    """Returns whether what is finished is to be done again, again=true of krill-evaluate."""
    return isinstance(config, EvaluateConfig) and config.again


class InputsCache:
    """Opens the inputs of many configurations; text that several of them share is read once."""

    def __init__(self) -> None:
        self._opened: dict[str, RunInputs] = {}

    def open(self, config: Section) -> RunInputs | None:
        """Returns the inputs of `config`, or None for a configuration without any."""
        from krill.data.inputs import RunInputs

        if not isinstance(config, TrainConfig):
            return None
        key = config.data.model_dump_json() + config.tokenizer.model_dump_json()
        if key not in self._opened:
            self._opened[key] = RunInputs.open(config)
        return self._opened[key]


def raise_if_task(config: TrainConfig) -> None:
    """Raises UsageError for data.task, which is for krill-preprocess alone."""
    if config.data.task is not None:
        raise UsageError(
            "data.task is for the jobs of krill-preprocess; training reads all parts: leave it out"
        )


def _compute_run_identity(config: TrainConfig, inputs: RunInputs) -> str:
    stops_early = config.stops_early
    return compute_signature(
        "train",
        2,
        config,
        resolve_batch_shape(config).rows_per_step,
        inputs.store_signature,
        inputs.tokenizer_settings,
        _hash_custom_code(config),
        *_get_branch_identity(config),
        *([config.eval_every] if stops_early else []),
        *([config.eval_tokens] if stops_early and config.eval_tokens else []),
        *([config.best_metric, config.stop.target, config.evaluation] if config.stops_by_score else []),
    )


def _compute_answers_identity(config: InferConfig) -> str:
    """Returns the signature of the answers to a prompt, or to the prompts of a file, whose content counts."""
    content = None
    if config.prompts is not None:
        check_prompts_path(config.prompts)
        content = hash_file(expand_home(config.prompts))
    return compute_signature("infer", 2, config, content, config.hardware.precision)


def _compute_evaluation_identity(config: EvaluateConfig) -> str:
    """Returns the signature of the evaluation of a model, whose files count by their names, sizes and times.

    The weights may be large, and are hashed by the evaluation itself: it finds the results of the same weights.
    """
    path = expand_home(config.model.path)
    folders = [path, path / "model", *list_checkpoints(path / "checkpoints")[-1:]]
    folder = next((folder for folder in folders if (folder / "config.json").is_file()), None)
    files = sorted(folder.glob("*.json")) + sorted(folder.glob("*.safetensors")) if folder else []
    states = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return compute_signature(
        "evaluate", 2, config, states, config.hardware.precision, *_hash_own_content(config)
    )


def _hash_own_content(config: EvaluateConfig) -> list[Any]:
    """Returns hashes of the user's tasks and text."""
    hashes: list[Any] = [
        CustomTaskSource(task).content_hash for task in list_custom_tasks(config.evaluation.tasks)
    ]
    if config.data is not None:
        from krill.sources.registry import open_source

        hashes.append(compute_data_signature(config.data, open_source(config.data).fingerprint))
    return hashes


def _hash_custom_code(config: TrainConfig) -> list[str]:
    """Returns the hashes of a custom model and a custom optimizer, and of the weights of model.from."""
    sections = (config.model, config.optimizer)
    code = [
        custom_code.hash_custom_function(section.build) for section in sections if hasattr(section, "build")
    ]
    if not isinstance(config.model, PretrainedModelConfig):
        return code
    from krill.models.pretrained import hash_model

    return [*code, *hash_model(config.model.from_)]


def _get_branch_identity(config: TrainConfig) -> list[Any]:
    if config.branch is None:
        return []
    from krill.training.checkpoint.branch import get_branch_identity

    return get_branch_identity(config)
