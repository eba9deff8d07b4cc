"""Finds the evaluator of a task by the name of the task, and evaluates a model with it."""

from __future__ import annotations

import time
from typing import Literal

from krill.config.suggestions import suggest
from krill.data.store import Store
from krill.errors import UsageError
from krill.evaluation.bundled import PAIR_TASKS, TASK_LANGUAGES
from krill.evaluation.choice_evaluator import ChoiceEvaluator, ClozeSource, PairSource
from krill.evaluation.evaluator import EvaluationSettings, Evaluator, Report, ignore_progress
from krill.evaluation.languages import list_languages
from krill.evaluation.results import TaskResult
from krill.evaluation.subject import Subject, sample_text
from krill.evaluation.text_evaluator import TextEvaluator
from krill.tokenizer.artifact import TokenizerFolder

TEXT, CLOZE = TextEvaluator.name, ClozeSource.name
TASKS = (TEXT, *PAIR_TASKS, CLOZE)
"""The names of all tasks that need nothing but krill."""


def choose_tasks(
    tasks: Literal["auto"] | list[str], store: Store | None, tokenizer: TokenizerFolder
) -> list[str]:
    """Returns the names of the tasks, each once; for auto those in the languages of the text in `store`."""
    if tasks != "auto":
        return list(dict.fromkeys(tasks))
    if store is None:
        return list(PAIR_TASKS)
    languages = list_languages(sample_text(store, tokenizer))
    pairs = [task for task, language in TASK_LANGUAGES.items() if language in languages]
    return [TEXT, *pairs, CLOZE] if store.validation.tokens else pairs


def find_evaluator(name: str) -> Evaluator:
    """Returns the evaluator of the task `name`; raises UsageError for an unknown one."""
    if name == TEXT:
        return TextEvaluator()
    if name == CLOZE:
        return ChoiceEvaluator(ClozeSource())
    if name in PAIR_TASKS:
        return ChoiceEvaluator(PairSource(name))
    raise UsageError(f"tasks={name}: no such task; {suggest(name, TASKS)}")


def evaluate_task(
    evaluator: Evaluator,
    subject: Subject,
    settings: EvaluationSettings,
    report: Report = ignore_progress,
) -> TaskResult:
    """Returns the scores of `subject`, the same on every rank; `report` gets numbers of sequences.

    Raises UsageError for a task that needs the text of the run, without it.
    """
    started_at = time.perf_counter()
    result = evaluator.evaluate(subject, settings, report)
    seconds = round(time.perf_counter() - started_at, 2)
    return result.model_copy(update={"model": subject.name, "seconds": seconds})
