"""Evaluates a model on tasks: text, minimal pairs and a cloze, with what n-gram models score beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from krill.config.signature import compute_signature
from krill.errors import UsageError
from krill.evaluation.bundled import PAIR_TASKS, build_pair_task
from krill.evaluation.choices import EncodedTask, TaskScores, encode_task, score_task
from krill.evaluation.cloze import build_cloze
from krill.evaluation.languages import find_main_language
from krill.evaluation.ngram_scores import score_with_ngrams
from krill.evaluation.results import VERSION, Score, TaskResult
from krill.evaluation.rolling import EncodedText, TextScores, combine_texts, score_texts
from krill.evaluation.statistics import Interval, bootstrap_ratio
from krill.evaluation.subject import Subject
from krill.evaluation.task import Task

TEXT, CLOZE = "text", "cloze"
TASKS = (TEXT, *PAIR_TASKS, CLOZE)
"""The names of all tasks that need nothing but krill."""


@dataclass(frozen=True)
class EvaluationSettings:
    """What changes a score, besides the model and the items."""

    limit: int | None
    """Number of items of each phenomenon, or of a task without phenomena; None: all."""
    text_tokens: int
    """Tokens of held-out text that are scored, approximately."""
    overlap: float
    """Share of the context of the model that a window of a long text repeats."""


Report = Callable[[int], None]


def evaluate_task(
    name: str, subject: Subject, settings: EvaluationSettings, report: Report = lambda count: None
) -> TaskResult:
    """Returns the scores of `subject` on the task `name` of TASKS; `report` gets numbers of items.

    Raises UsageError for a task that needs the text of the run, without it.
    """
    started_at = time.perf_counter()
    result = (
        _evaluate_text(subject, settings, report)
        if name == TEXT
        else _evaluate_choices(_build_task(name, subject, settings), subject, report)
    )
    return result.model_copy(
        update={"model": subject.name, "seconds": round(time.perf_counter() - started_at, 2)}
    )


def _build_task(name: str, subject: Subject, settings: EvaluationSettings) -> Task:
    if name in PAIR_TASKS:
        return build_pair_task(name, settings.limit)
    texts = subject.decode(subject.read_held_out_texts(settings.text_tokens))
    task = build_cloze(CLOZE, find_main_language(texts), texts)
    if task is None:
        raise UsageError(f"{CLOZE}: {_describe_missing_text(subject)}")
    return Task(task.name, task.language, task.description, task.items[: settings.limit], task.version)


def _describe_missing_text(subject: Subject) -> str:
    return (
        f"the run of {subject.name} has too little held-out text; leave this task out of tasks="
        if subject.store is not None
        else f"the tokens that {subject.name} was trained on are not here; leave this task out of tasks="
    )


# --- choices ------------------------------------------------------------------------------------------------------


def _evaluate_choices(task: Task, subject: Subject, report: Report) -> TaskResult:
    encoded = encode_task(task, subject.encoder, subject.context_length)
    scores = score_task(subject.scorer, encoded, report)
    baselines = (
        score_with_ngrams(encoded, subject.store.train, subject.tokenizer.vocab_size) if subject.store else {}
    )
    return build_choice_result(encoded, scores, baselines)


def build_choice_result(
    encoded: EncodedTask, scores: TaskScores, baselines: dict[str, TaskScores]
) -> TaskResult:
    """Returns the accuracy of the whole task, then of each phenomenon, by all and by probability per byte."""
    task = encoded.task
    notes: dict[str, int | float | str] = {"truncated": encoded.truncated} if encoded.truncated else {}
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
    for name in ("", *names) if len(names) > 1 else ("",):
        chosen = (phenomena == name) if name else np.ones(len(phenomena), bool)
        for metric in ("accuracy", "accuracy_per_byte"):
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


# --- text ---------------------------------------------------------------------------------------------------------


def _evaluate_text(subject: Subject, settings: EvaluationSettings, report: Report) -> TaskResult:
    texts = subject.read_held_out_texts(settings.text_tokens)
    if not texts:
        raise UsageError(f"{TEXT}: {_describe_missing_text(subject)}")
    overlap = max(1, int(settings.overlap * subject.context_length))
    share = score_texts(subject.scorer, texts, subject.context_length, overlap, report=report)
    return build_text_result(texts, subject.decode(texts), combine_texts(texts, [share]), overlap)


def build_text_result(
    texts: Sequence[EncodedText], strings: Sequence[str], scores: TextScores, overlap: int
) -> TaskResult:
    """Returns bits per byte of all documents, then of each source and each language, if there are several."""
    languages = [find_main_language([string]) for string in strings]
    groups = {"": np.ones(len(texts), bool)}
    for labels in ([text.source for text in texts], languages):
        names = list(dict.fromkeys(labels))
        if len(names) > 1:
            groups |= {name: np.array([label == name for label in labels]) for name in names}
    return TaskResult(
        task=TEXT,
        kind="text",
        language=languages[0] if len(set(languages)) == 1 else None,
        version=VERSION,
        items_hash=compute_signature("evaluation text", strings),
        scores=tuple(_build_text_score(name, scores.select(chosen)) for name, chosen in groups.items()),
        outcomes={"nats": scores.nats.tolist(), "bytes": scores.bytes.astype(float).tolist()},
        notes={"overlap": overlap},
    )


def _build_text_score(name: str, scores: TextScores) -> Score:
    interval: Interval = scores.estimate_bits_per_byte()
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
