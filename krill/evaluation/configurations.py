"""Evaluated models as the rows of a table: the seeds of one configuration are one row, and rows have labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import stdev

from krill.config.paths import relative_path
from krill.evaluation.compare import stack_item_scores
from krill.evaluation.evaluated_model import EvaluatedModel
from krill.evaluation.results import TaskResult
from krill.evaluation.statistics import SeedSpread, measure_spread
from krill.runs.table import find_differing_overrides


@dataclass(frozen=True)
class Configuration:
    """Models that differ in the seed of their runs only: one row of a table."""

    models: tuple[EvaluatedModel, ...]
    """At least one, sorted by seed."""
    label: str = field(default="", compare=False)
    """Names the row in a table."""

    @property
    def first(self) -> EvaluatedModel:
        """The model with the lowest seed."""
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

    def compute_deviation(self, task: str) -> float:
        """Returns the standard deviation of the main scores over the seeds, at least two."""
        return stdev(result.main_score.value for result in self.get_results(task))

    def compute_spread(self, task: str) -> SeedSpread | None:
        """Returns how the scores of the seeds vary on the same items; None: the scores of the items are not known."""
        values = stack_item_scores(self.get_results(task))
        return None if values is None else measure_spread(values)


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
    overrides = (
        find_differing_overrides([model.overrides for model in models]) if len(rows) > 1 else [""] * len(rows)
    )
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
