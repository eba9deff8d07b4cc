"""Evaluates on a task of lm-eval with lm-eval's own code, and takes its scores over."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import cache
from importlib.metadata import version
from typing import Any
from unittest.mock import patch

import numpy as np

from krill.config.signature import compute_signature
from krill.evaluation.contaminated_items import describe_contamination, find_contaminated_items
from krill.evaluation.evaluator import EvaluationSettings
from krill.evaluation.lm_eval_tasks import FEW_SHOT_SEED, fixed_seeds, load_tasks
from krill.evaluation.lm_eval_texts import build_document_text
from krill.evaluation.results import VERSION, Score, TaskResult
from krill.evaluation.statistics import Interval, bootstrap_ratio
from krill.evaluation.subject import Subject
from krill.evaluation.token_scorer import Report

STDERR_RESAMPLES = 1000
"""Number of resamples from which lm-eval estimates the standard error of what is not a mean."""
NORMAL_95 = 1.96
"""Standard errors on each side of a 95 % interval."""
_NO_FILTER = ",none"


class LmEvalEvaluator:
    """Evaluates on the task, group or tag `name` of lm-eval."""

    metrics = None

    def __init__(self, name: str):
        self.name = name

    def identify(self, settings: EvaluationSettings) -> Any:
        identity = _identify(self.name, settings.few_shot, settings.limit)
        return [*identity, "contamination"] if settings.contamination else identity

    @fixed_seeds()
    def evaluate(self, subject: Subject, settings: EvaluationSettings, report: Report) -> TaskResult:
        from lm_eval.evaluator import evaluate

        from krill.evaluation.lm_eval_model import SubjectLM

        loaded = load_tasks(self.name, settings.few_shot)
        model = SubjectLM(subject, report)
        with _silence():
            for task in loaded["tasks"].values():
                task.set_fewshot_seed(FEW_SHOT_SEED)
            output = evaluate(model, loaded, limit=settings.limit, bootstrap_iters=STDERR_RESAMPLES)
        parts = [_TaskScores(self.name, task, output) for task in loaded["tasks"].values()]
        outcomes = _join_outcomes(parts)
        notes: dict[str, int | float | str] = {"lm_eval": version("lm_eval")}
        if settings.few_shot is not None:
            notes["few_shot"] = settings.few_shot
        if model.truncated:
            notes["truncated"] = model.truncated
        result = TaskResult(
            task=self.name,
            kind="lm_eval",
            language=None,
            version=VERSION,
            items_hash=compute_signature("lm-eval items", [part.item_hashes for part in parts]),
            scores=(
                *_list_group_scores(self.name, output, outcomes),
                *(score for part in parts for score in part.list_scores()),
            ),
            outcomes=outcomes,
            notes=notes,
        )
        if not settings.contamination:
            return result
        return result.model_copy(update={"notes": notes | _find_contamination(result, parts, subject)})


@cache
def _identify(name: str, few_shot: int | None, limit: int | None) -> Any:
    tasks = load_tasks(name, few_shot)["tasks"]
    documents = {
        task_name: [
            compute_signature("lm-eval documents", _to_json(task.eval_docs, limit)),
            compute_signature("lm-eval examples", _to_json(task.fewshot_docs() or [], None))
            if task.get_config("num_fewshot")
            else None,
        ]
        for task_name, task in tasks.items()
    }
    return [version("lm_eval"), few_shot, limit, documents]


def _to_json(documents: Iterable[Any], limit: int | None) -> list[str]:
    return [
        json.dumps(document, default=str, sort_keys=True)
        for index, document in enumerate(documents)
        if limit is None or index < limit
    ]


class _TaskScores:
    """The scores of one task of lm-eval."""

    def __init__(self, requested: str, task: Any, output: Mapping[str, Any]):
        """`requested`: the task or group that is evaluated. `output`: what lm-eval's `evaluate` returns."""
        self._task, self._name = task, task.task_name
        self.label = "" if self._name == requested else self._name
        self._values = output["results"][self._name]
        self._higher_is_better = output["higher_is_better"].get(self._name, {})
        self._samples = output["samples"][self._name]

    @property
    def item_hashes(self) -> list[list[str]]:
        """Identifies documents, prompts and targets."""
        keys = ("doc_hash", "prompt_hash", "target_hash")
        return [[sample[key] for key in keys] for sample in self._samples]

    def list_outcomes(self) -> dict[str, list[float]]:
        """Returns the values of each document, of the metrics that are means over documents."""
        from lm_eval.api.metrics import mean

        aggregations = self._task.aggregation()
        return {
            _get_label(key): [float(value) for value in self._get_values(key)]
            for key in _list_metrics(self._values)
            if aggregations.get(_get_metric(key), mean) is mean
        }

    def list_scores(self) -> Iterator[Score]:
        """Yields a score for each metric."""
        outcomes = self.list_outcomes()
        for key in _list_metrics(self._values):
            label, metric = _get_label(key), _get_metric(key)
            if label in outcomes:
                interval: Interval | float = bootstrap_ratio(np.array(outcomes[label]))
            elif metric == "bits_per_byte":
                logprobs, sizes = np.array(self._get_values(key), np.float64).T
                interval = bootstrap_ratio(-logprobs / math.log(2), sizes)
            else:
                interval = _build_interval(self._values, key)
            is_accuracy = metric in ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")
            yield _build_score(
                self.label, key, interval, len(self._get_values(key)),
                self._higher_is_better.get(metric) is not False,
                self._compute_chance() if is_accuracy else None,
            )  # fmt: skip

    def list_texts(self, label: str) -> list[str | None]:
        """Returns the text of each document that has a value of a metric; None: it is not known."""
        samples = self._list_samples(label if "," in label else label + _NO_FILTER)
        return [build_document_text(self._task, sample["doc"]) for sample in samples]

    def _get_values(self, key: str) -> list[Any]:
        return [sample[_get_metric(key)] for sample in self._list_samples(key)]

    def _list_samples(self, key: str) -> list[Mapping[str, Any]]:
        """Returns what lm-eval records of each document that has a value of the metric `key`: "metric,filter"."""
        metric, _, name = key.partition(",")
        return [sample for sample in self._samples if sample["filter"] == name and metric in sample]

    def _compute_chance(self) -> float | None:
        """Returns the accuracy of guessing; None for tasks without choices."""
        if self._task.OUTPUT_TYPE != "multiple_choice":
            return None
        # for mutual information each choice is scored a second time, without its context
        per_choice = 2 if "acc_mutual_info" in self._task.aggregation() else 1
        return float(np.mean([per_choice / len(sample["arguments"]) for sample in self._samples]))


def _list_group_scores(
    name: str, output: Mapping[str, Any], outcomes: Mapping[str, list[float]]
) -> Iterator[Score]:
    """Yields the scores that lm-eval defines for a group, and for the groups in it, that of `name` first."""
    groups = output.get("groups", {})
    for group in sorted(groups, key=lambda group: group != name):
        for key in _list_metrics(groups[group]):
            values = np.array(outcomes.get(_get_label(key), []) if group == name else [])
            is_mean = len(values) and math.isclose(values.mean(), groups[group][key], abs_tol=1e-9)
            interval = bootstrap_ratio(values) if is_mean else _build_interval(groups[group], key)
            items = groups[group].get("sample_count", {}).get(key, 0)
            higher = output["higher_is_better"].get(group, {}).get(_get_metric(key)) is not False
            yield _build_score("" if group == name else group, key, interval, items, higher, None)


def _join_outcomes(parts: Iterable[_TaskScores]) -> dict[str, list[float]]:
    """Returns the values of each metric, those of the first task first."""
    outcomes: dict[str, list[float]] = {}
    for part in parts:
        for label, values in part.list_outcomes().items():
            outcomes.setdefault(label, []).extend(values)
    return outcomes


def _find_contamination(
    result: TaskResult, parts: Iterable[_TaskScores], subject: Subject
) -> dict[str, int | float | str]:
    """Returns the notes on which documents of the main score are in the training text of `subject`."""
    main = result.main_score
    texts = [text for part in parts if main.name in ("", part.label) for text in part.list_texts(main.metric)]
    known_texts = [text for text in texts if text is not None]
    notes: dict[str, int | float | str] = {"looked_for": len(known_texts)}
    if unknown := (len(texts) or main.items) - len(known_texts):
        notes["not_looked_for"] = unknown
    if not known_texts:
        return notes
    is_contaminated = find_contaminated_items(known_texts, subject)
    values = result.compute_item_scores()
    if values is None or len(values) != len(texts):
        return notes | describe_contamination(is_contaminated, None)
    known_values = values[[text is not None for text in texts]]
    return notes | describe_contamination(is_contaminated, lambda chosen: float(known_values[chosen].mean()))


def _list_metrics(values: Mapping[str, Any]) -> list[str]:
    """Returns the keys of the metrics that have a number: "metric,filter"."""
    return [
        key
        for key, value in values.items()
        if "," in key and "_stderr," not in key and isinstance(value, (int, float)) and math.isfinite(value)
    ]


def _get_metric(key: str) -> str:
    return key.partition(",")[0]


def _get_label(key: str) -> str:
    """Returns the name of a metric, with the filter of the answers if there is one."""
    return key.removesuffix(_NO_FILTER)


def _build_interval(values: Mapping[str, Any], key: str) -> Interval | float:
    """Returns the interval of lm-eval's standard error, or the value alone."""
    value, error = float(values[key]), values.get(key.replace(",", "_stderr,", 1))
    if not isinstance(error, (int, float)) or not math.isfinite(error):
        return value
    return Interval(value, value - NORMAL_95 * error, value + NORMAL_95 * error)


def _build_score(
    name: str, key: str, interval: Interval | float, items: int, higher_is_better: bool, chance: float | None
) -> Score:
    bounds = {"low": interval.low, "high": interval.high} if isinstance(interval, Interval) else {}
    return Score(
        name=name,
        metric=_get_label(key),
        value=interval.value if isinstance(interval, Interval) else interval,
        items=items,
        higher_is_better=higher_is_better,
        chance=chance,
        **bounds,
    )


@contextmanager
def _silence() -> Iterator[None]:
    """Keeps lm-eval from drawing bars, writing to standard output and forking this process."""
    with (
        patch("lm_eval.api.task.tqdm", lambda documents, **_: documents),
        patch.dict(os.environ, DISABLE_MULTIPROC="1"),
        redirect_stdout(io.StringIO()),
    ):
        yield
