"""A model with its results, and the seeds of one configuration as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from krill.config.paths import expand_home, relative_path
from krill.config.schema import EvaluateConfig, HardwareConfig, TrainConfig
from krill.config.signature import compute_signature
from krill.evaluation.results import TaskResult, read_results
from krill.runs.find import find_run_folder
from krill.runs.record import read_config, read_status
from krill.runs.table import exclude_shared_overrides, find_differing_overrides

_NAME_KEYS = ("seed", "name", "output")
"""Keys in which the runs of one configuration may differ, besides those that do not change the weights."""


@dataclass(frozen=True)
class EvaluatedModel:
    """A model and its results."""

    path: str
    """What named the model: a folder, or a Hub id."""
    results: dict[str, TaskResult]
    """Task → its result."""
    settings: tuple[str, ...] = ()
    """Overrides of the evaluation, besides the model and the tasks, that not all models share."""
    run: Path | None = None
    """The folder of the run that trained it; None: unknown."""
    name: str = ""
    """The name of that run."""
    seed: int | None = None
    overrides: tuple[str, ...] = ()
    """The overrides of that run that change its weights, without seed=."""
    configuration: str = ""
    """Identifies the configuration and the text of that run, without the seed; empty: unknown."""

    @classmethod
    def read(cls, path: str, results: Sequence[TaskResult], settings: Sequence[str] = ()) -> EvaluatedModel:
        """Reads what the run of the model at `path` recorded, if there is one."""
        by_task = {result.task: result for result in results}
        folder = expand_home(path)
        run = find_run_folder(folder) if folder.exists() else None
        if run is None:
            return cls(path, by_task, tuple(settings))
        status, config = read_status(run) or {}, read_config(run)
        seed = config.get("seed")
        return cls(
            path, by_task, tuple(settings), run, str(status.get("name") or ""),
            seed if isinstance(seed, int) else None,
            _list_overrides(status),
            _identify_configuration(config, status) if config else "",
        )  # fmt: skip

    @property
    def weights(self) -> str:
        """Identifies the weights."""
        return next(iter(self.results.values())).weights if self.results else ""

    @property
    def checkpoint(self) -> str:
        """The name of the checkpoint of the run that was evaluated; empty: its final model."""
        folders = (result.weights_folder for result in self.results.values())
        return next((Path(folder).name for folder in folders if folder not in ("", "model")), "")

    @property
    def items_hashes(self) -> tuple[tuple[str, str], ...]:
        """The task and the hash of the items of each result."""
        return tuple(sorted((task, result.items_hash) for task, result in self.results.items()))


def _list_overrides(status: dict[str, Any]) -> tuple[str, ...]:
    """Returns the overrides of a run that change its weights, without the seed."""
    ignored = {*TrainConfig.get_unsigned_keys(), *_NAME_KEYS} - {"data", "tokenizer", "batch", "branch"}
    return tuple(
        text
        for text in map(str, status.get("overrides") or ())
        if text.lstrip("+~").partition("=")[0].partition(".")[0] not in ignored
    )


def _identify_configuration(config: dict[str, Any], status: dict[str, Any]) -> str:
    """Returns the signature of what determines the weights of a run, but for its seed."""
    ignored = (TrainConfig.get_unsigned_keys() - {"batch", "branch", "branch_schedule"}) | {"seed"}
    values = {key: value for key, value in config.items() if key not in ignored}
    if isinstance(values.get("hardware"), dict):
        unsigned = HardwareConfig.get_unsigned_keys()
        values["hardware"] = {key: value for key, value in values["hardware"].items() if key not in unsigned}
    data = status.get("data")
    return compute_signature(values, data.get("signature") if isinstance(data, dict) else None)


def read_points(points: Sequence[tuple[Path, Sequence[str]]]) -> list[EvaluatedModel]:
    """Returns the models of those points of a sweep of krill-evaluate that have results.

    `points`: the folder and the overrides of each. The overrides in which points of one model differ are settings,
    but for those that choose tasks: points of one model with different tasks are one row.
    """
    ignored = {*EvaluateConfig.get_unsigned_keys(), "model"} - {"hardware"}
    configs = [read_config(folder) for folder, _ in points]
    task_keys = {"evaluation.tasks", *(["evaluation"] if _differ_in_tasks_alone(configs) else [])}
    overrides = [
        [
            text
            for text in own
            if (key := text.partition("=")[0]) not in task_keys and key.partition(".")[0] not in ignored
        ]
        for _, own in points
    ]
    differing = exclude_shared_overrides(overrides) if len(points) > 1 else [[] for _ in points]
    models = []
    for (folder, _), config, settings in zip(points, configs, differing, strict=True):
        section = config.get("model")
        if isinstance(section, dict) and (results := read_results(folder)):
            models.append(EvaluatedModel.read(str(section.get("path")), results, settings))
    return models


def _differ_in_tasks_alone(configs: Sequence[dict[str, Any]]) -> bool:
    """Returns whether the sections evaluation differ in nothing but their tasks, as the presets of krill do."""
    sections = [config.get("evaluation") for config in configs]
    settings = [
        {key: value for key, value in section.items() if key != "tasks"}
        for section in sections
        if isinstance(section, dict)
    ]
    return all(one == settings[0] for one in settings)


@dataclass(frozen=True)
class Configuration:
    """Models that differ in the seed of their runs only: one row of a table."""

    models: tuple[EvaluatedModel, ...]
    label: str = field(default="", compare=False)

    @property
    def first(self) -> EvaluatedModel:
        return self.models[0]

    @cached_property
    def tasks(self) -> list[str]:
        """The tasks of which there are results, in the order of evaluation."""
        return list(self.first.results)

    def get_results(self, task: str) -> list[TaskResult]:
        """Returns the result of each model on `task`; empty without it."""
        return [model.results[task] for model in self.models] if task in self.first.results else []

    def get_items_hash(self, task: str) -> str | None:
        """Returns the hash of the items of `task`; None without a result."""
        results = self.get_results(task)
        return results[0].items_hash if results else None

    def compute_score(self, task: str) -> float | None:
        """Returns the mean of the main scores over the seeds; None without a result."""
        results = self.get_results(task)
        return sum(result.main_score.value for result in results) / len(results) if results else None


def build_configurations(models: Sequence[EvaluatedModel], pool_seeds: bool = True) -> list[Configuration]:
    """Returns the models as rows: those of one configuration with other seeds together, unless not `pool_seeds`.

    The results of a model that was evaluated in several parts are joined; the same weights count once.
    """
    groups: dict[tuple[object, ...], list[EvaluatedModel]] = {}
    for index, model in enumerate(_join_same_weights(models)):
        is_pooled = pool_seeds and model.configuration and model.seed is not None
        identity = (model.configuration, model.checkpoint, model.settings, model.items_hashes)
        groups.setdefault(identity if is_pooled else (index,), []).append(model)
    rows = [
        Configuration(tuple(sorted(group, key=lambda model: model.seed or 0))) for group in groups.values()
    ]
    return [Configuration(row.models, label) for row, label in zip(rows, _label(rows), strict=True)]


def _join_same_weights(models: Sequence[EvaluatedModel]) -> list[EvaluatedModel]:
    joined: dict[tuple[object, ...], EvaluatedModel] = {}
    for model in models:
        identity = (model.weights or model.path, model.settings)
        earlier = joined[identity].results if identity in joined else {}
        joined[identity] = replace(model, results=earlier | model.results)
    return [model for model in joined.values() if model.results]


def _label(rows: Sequence[Configuration]) -> list[str]:
    """Returns a label for each row: the parts in which it differs from the others, else the folder of its run."""
    models = [row.first for row in rows]
    overrides = find_differing_overrides([model.overrides for model in models]) if len(rows) > 1 else [""]
    names = [_get_common_name(row) for row in rows]
    has_one_name = len(set(names)) == 1
    labels = []
    for row, model, common_name, differing in zip(rows, models, names, overrides, strict=True):
        if model.run is None:
            parts = [str(relative_path(Path(model.path))) if Path(model.path).exists() else model.path]
        else:
            name = "" if has_one_name and differing else common_name
            parts = [name or ("" if differing else model.run.name), differing, model.checkpoint]
        if len(row.models) == 1 and model.seed is not None and _has_siblings(row, rows):
            parts.append(f"seed={model.seed}")
        labels.append(" ".join(filter(None, [*parts, *model.settings])))
    return [
        f"{label} {row.first.run.name}" if labels.count(label) > 1 and row.first.run else label
        for row, label in zip(rows, labels, strict=True)
    ]


def _get_common_name(row: Configuration) -> str:
    """Returns the name of the runs of a row; empty: they have several."""
    names = {model.name for model in row.models}
    return names.pop() if len(names) == 1 else ""


def _has_siblings(row: Configuration, rows: Sequence[Configuration]) -> bool:
    """Returns whether other rows are of the same configuration."""
    return sum(other.first.configuration == row.first.configuration for other in rows) > 1
