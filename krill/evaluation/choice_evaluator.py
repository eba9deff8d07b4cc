"""Tasks of choices, such as minimal pairs and the cloze, with what n-gram models score beside the model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from krill.evaluation.choice_sources import ChoiceSource
from krill.evaluation.choices import EncodedTask, TaskScores, encode_task, score_task
from krill.evaluation.contaminated_items import describe_contamination, find_contaminated_items
from krill.evaluation.evaluator import EvaluationSettings
from krill.evaluation.ngram_scores import score_with_ngrams
from krill.evaluation.results import VERSION, Score, TaskResult
from krill.evaluation.statistics import bootstrap_ratio
from krill.evaluation.subject import Subject
from krill.evaluation.task import Task
from krill.evaluation.token_scorer import Report

_PreparedTask = tuple[EncodedTask, dict[str, TaskScores], np.ndarray | None]
"""The items, the scores of the n-gram models, and which items are in the training text."""


class ChoiceEvaluator:
    """Evaluates which choices of the items of `source` a model prefers."""

    metrics = ("accuracy", "accuracy_per_byte")

    def __init__(self, source: ChoiceSource):
        self.source, self.name = source, source.name
        self._prepared: tuple[Any, _PreparedTask] | None = None

    def identify(self, settings: EvaluationSettings) -> Any:
        return [self.source.identify(settings), settings.contamination]

    def evaluate(self, subject: Subject, settings: EvaluationSettings, report: Report) -> TaskResult:
        encoded, baselines, is_contaminated = self._prepare(subject, settings)
        scores = score_task(subject.scorer, encoded, report)
        return _build_result(encoded, scores, baselines, is_contaminated)

    def _prepare(self, subject: Subject, settings: EvaluationSettings) -> _PreparedTask:
        """Returns what does not depend on the weights, made once for all evaluations of a training."""
        store, tokenizer = subject.store, subject.tokenizer
        key = (settings, tokenizer.signature, subject.context_length, store and store.signature)
        if self._prepared is None or self._prepared[0] != key:
            encoded = encode_task(
                self.source.build(subject, settings), subject.encoder, subject.context_length
            )
            baselines = score_with_ngrams(encoded, store.train, tokenizer.vocab_size) if store else {}
            is_contaminated = None
            if settings.contamination:
                texts = [item.context + item.choices[item.answer] for item in encoded.task.items]
                is_contaminated = find_contaminated_items(texts, subject)
            self._prepared = key, (encoded, baselines, is_contaminated)
        return self._prepared[1]


def _build_result(
    encoded: EncodedTask,
    scores: TaskScores,
    baselines: dict[str, TaskScores],
    is_contaminated: np.ndarray | None,
) -> TaskResult:
    """Returns the accuracy of the whole task, then of each phenomenon, by all and by probability per byte."""
    task = encoded.task
    notes: dict[str, int | float | str] = {**task.notes}
    if encoded.truncated:
        notes["truncated"] = encoded.truncated
    if encoded.unknown:
        notes["unknown_items"] = encoded.unknown
    if is_contaminated is not None:
        notes |= describe_contamination(is_contaminated, lambda chosen: float(scores.correct[chosen].mean()))
    return TaskResult(
        task=task.name,
        kind="choices",
        language=task.language,
        version=VERSION,
        items_hash=task.item_hash,
        scores=tuple(_list_accuracies(task, scores, baselines)),
        outcomes={
            "correct": scores.correct.tolist(),
            "correct_per_byte": scores.correct_per_byte.tolist(),
        },
        notes=notes,
    )


def _list_accuracies(task: Task, scores: TaskScores, baselines: dict[str, TaskScores]) -> Iterator[Score]:
    phenomena = np.array([item.phenomenon for item in task.items])
    chance = np.array([1 / len(item.choices) for item in task.items])
    names = list(dict.fromkeys(phenomena.tolist()))
    for name in ("", *filter(None, names)) if len(names) > 1 else ("",):
        chosen = (phenomena == name) if name else np.ones(len(phenomena), bool)
        for metric in ChoiceEvaluator.metrics:
            is_per_byte = metric == "accuracy_per_byte"

            def select(
                one: TaskScores, per_byte: bool = is_per_byte, which: np.ndarray = chosen
            ) -> np.ndarray:
                return (one.correct_per_byte if per_byte else one.correct)[which]

            interval = bootstrap_ratio(select(scores))
            yield Score(
                name=name,
                metric=metric,
                value=interval.value,
                low=interval.low,
                high=interval.high,
                items=int(chosen.sum()),
                chance=float(chance[chosen].mean()),
                **{model: float(select(other).mean()) for model, other in baselines.items()},
            )
