"""The scores of a model in the front matter of its card, in the Hub's format `model-index`.

https://huggingface.co/docs/hub/model-cards#evaluation-results. huggingface_hub reads them as
`ModelCard.load(folder / "README.md").data.eval_results`. The card is not in the manifest of the model, so that it may
be edited.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from huggingface_hub import EvalResult, ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index

from krill import atomic
from krill.config.paths import relative_path
from krill.evaluation.evaluate import CLOZE, TEXT
from krill.evaluation.results import TaskResult
from krill.runs.scores import describe_metric

if TYPE_CHECKING:
    from krill.config.schema import DataConfig

CARD = "README.md"
"""The model card, in the folder of a model."""
VALIDATION = "validation"
"""The split of the run's text that is held out."""
log = logging.getLogger("krill")


def build_validation_results(data: DataConfig, metrics: dict[str, Any]) -> list[EvalResult]:
    """Returns the validation loss and bits per byte of a finished run; none for a run without validation."""
    names = {"eval_bits_per_byte": "bits_per_byte", "eval_loss": "loss"}
    return [
        EvalResult(
            **_describe_dataset(data.name, VALIDATION),
            dataset_split=VALIDATION,
            metric_type=metric,
            metric_name=f"validation {describe_metric(metric)}",
            metric_value=round(metrics[key], 5),
        )
        for key, metric in names.items()
        if metrics.get(key) is not None
    ]


def build_task_results(results: Sequence[TaskResult], data_name: str) -> Iterator[EvalResult]:
    """Yields the scores of whole tasks, with their intervals; `data_name`: the name of the text of the run."""
    for result in results:
        is_own_text = result.task in (TEXT, CLOZE)
        dataset = _describe_dataset(data_name if is_own_text else result.task, result.task)
        for score in result.scores:
            if not score.name:
                bounds = None if score.low is None else [round(score.low, 5), round(score.high or 0.0, 5)]
                details = {"confidence_interval_95": bounds, "items": score.items, "chance": score.chance}
                yield EvalResult(
                    **dataset,
                    dataset_split=VALIDATION if is_own_text else None,
                    metric_type=score.metric,
                    metric_name=f"{result.task} {describe_metric(score.metric)}",
                    metric_value=round(score.value, 5),
                    metric_args={key: value for key, value in details.items() if value is not None},
                )


def _describe_dataset(name: str, config: str) -> dict[str, Any]:
    return {
        "task_type": "text-generation",
        "dataset_type": name,
        "dataset_name": name,
        "dataset_config": config,
    }


def format_front_matter(head: dict[str, Any], name: str, results: Sequence[EvalResult]) -> str:
    """Returns the front matter of a card, with `results` as the model-index of the model `name`."""
    index = {"model-index": eval_results_to_model_index(name, list(results))} if results else {}
    return f"---\n{yaml.safe_dump(head | index, sort_keys=False, allow_unicode=True)}---\n"


def update_model_index(model_folder: Path, name: str, data_name: str, results: Sequence[TaskResult]) -> None:
    """Adds `results` to the card in `model_folder`, in place of earlier ones of the same task and metric.

    Nothing else in the card changes. A card whose front matter huggingface_hub cannot read stays as it is, which is
    logged.
    """
    file = model_folder / CARD
    new = list(build_task_results(results, data_name))
    if not new or not file.is_file():
        return
    try:
        # With utf-8-sig the front matter of a file with a BOM is found.
        card = ModelCard(file.read_text(encoding="utf-8-sig"))
        data: Any = card.data
        earlier = [result for result in data.eval_results or [] if not _is_any_of(result, new)]
        data.eval_results = [*earlier, *new]
        data.model_name = data.model_name or name
        text = str(card)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        log.warning(
            "card        %s is not changed, its front matter is not valid (%s)", relative_path(file), reason
        )
        return
    if text != file.read_text(encoding="utf-8"):
        atomic.write_text(file, text)


def _is_any_of(result: EvalResult, others: Sequence[EvalResult]) -> bool:
    def identify(one: EvalResult) -> tuple[Any, ...]:
        return (one.dataset_type, one.dataset_config, one.metric_type)

    return identify(result) in map(identify, others)
