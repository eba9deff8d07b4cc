"""A model with its results, and what its run recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from krill.config.paths import expand_home
from krill.config.schema import EvaluateConfig, HardwareConfig, TrainConfig
from krill.config.signature import compute_signature
from krill.evaluation.results import TaskResult, read_results
from krill.runs.find import find_run_folder
from krill.runs.record import read_config, read_status
from krill.runs.table import exclude_shared_overrides

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
    """The seed of that run; None: unknown."""
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
