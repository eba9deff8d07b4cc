"""Bits per byte of documents: in all, of each source and of each language."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from krill.config.signature import compute_signature
from krill.evaluation.contaminated_items import describe_contamination, find_contaminated_items
from krill.evaluation.evaluator import EvaluationSettings
from krill.evaluation.languages import find_main_language
from krill.evaluation.results import VERSION, Score, TaskResult
from krill.evaluation.rolling import EncodedText, TextScores, score_texts
from krill.evaluation.subject import Subject
from krill.evaluation.text_sources import TextSource
from krill.evaluation.token_scorer import Report


class TextEvaluator:
    """Scores documents: those of the validation split of a run, or of another source."""

    metrics = ("bits_per_byte",)

    def __init__(self, source: TextSource):
        self.source, self.name = source, source.name

    def identify(self, settings: EvaluationSettings) -> Any:
        return [self.source.identify(), settings.text_tokens, settings.overlap, settings.contamination]

    def evaluate(self, subject: Subject, settings: EvaluationSettings, report: Report) -> TaskResult:
        sample = self.source.read(subject, settings)
        overlap = max(1, int(settings.overlap * subject.context_length))
        scores = score_texts(subject.scorer, sample.texts, subject.context_length, overlap, report)
        notes: dict[str, int | float | str] = {"overlap": overlap, **sample.notes}
        if settings.contamination:
            is_contaminated = find_contaminated_items(sample.strings, subject)
            notes |= describe_contamination(
                is_contaminated, lambda chosen: scores.select(chosen).bits_per_byte
            )
        return self._build_result(sample.texts, sample.strings, scores, notes)

    def _build_result(
        self,
        texts: Sequence[EncodedText],
        strings: Sequence[str],
        scores: TextScores,
        notes: dict[str, int | float | str],
    ) -> TaskResult:
        languages = [find_main_language([string]) for string in strings]
        groups = {"": np.ones(len(texts), bool)}
        for labels in ([text.source for text in texts], languages):
            names = list(dict.fromkeys(labels))
            for name in (
                names if len(names) > 1 else ()
            ):  # a source may have the name of a language, such as ko
                groups.setdefault(name, np.array([label == name for label in labels]))
        return TaskResult(
            task=self.name,
            kind="text",
            language=languages[0] if len(set(languages)) == 1 else None,
            version=VERSION,
            items_hash=compute_signature("evaluation text", strings),
            scores=tuple(_build_score(name, scores.select(chosen)) for name, chosen in groups.items()),
            outcomes={"nats": scores.nats.tolist(), "bytes": scores.bytes.astype(float).tolist()},
            notes=notes,
        )


def _build_score(name: str, scores: TextScores) -> Score:
    interval = scores.estimate_bits_per_byte()
    return Score(
        name=name,
        metric="bits_per_byte",
        value=interval.value,
        low=interval.low,
        high=interval.high,
        items=len(scores.nats),
        higher_is_better=False,
        nats_per_token=scores.nats_per_token,
    )
