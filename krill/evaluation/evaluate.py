"""Finds the evaluator of a task by the name of the task, and evaluates a model with it."""

from __future__ import annotations

import time
from collections.abc import Iterable

from krill.config.suggestions import suggest
from krill.errors import UsageError
from krill.evaluation import lm_eval_tasks, olmo_items
from krill.evaluation.bundled import PAIR_TASKS
from krill.evaluation.choice_evaluator import ChoiceEvaluator, ClozeSource, OlmoSource, PairSource
from krill.evaluation.evaluator import EvaluationSettings, Evaluator, Report, ignore_progress
from krill.evaluation.last_word_evaluator import LastWordEvaluator
from krill.evaluation.lm_eval_evaluator import LmEvalEvaluator
from krill.evaluation.results import TaskResult
from krill.evaluation.subject import Subject
from krill.evaluation.text_evaluator import TextEvaluator

TEXT, CLOZE = TextEvaluator.name, ClozeSource.name
TASKS = (TEXT, *PAIR_TASKS, CLOZE)
"""The names of all tasks that need nothing but krill."""


def expand_tasks(names: Iterable[str]) -> list[str]:
    """Returns the names of tasks, each once; a collection of lm-eval that has no score becomes its tasks."""
    tasks: dict[str, None] = {}
    for name in names:
        is_own = name in TASKS or name.startswith(olmo_items.PREFIX)
        tasks |= dict.fromkeys([name] if is_own else lm_eval_tasks.expand(name))
    return list(tasks)


def find_evaluator(name: str) -> Evaluator:
    """Returns the evaluator of the task `name`; raises UsageError for an unknown one."""
    if name == TEXT:
        return TextEvaluator()
    if name == CLOZE:
        return ChoiceEvaluator(ClozeSource())
    if name in PAIR_TASKS:
        return ChoiceEvaluator(PairSource(name))
    if name == f"{olmo_items.PREFIX}lambada":
        return LastWordEvaluator(name)
    if name.startswith(olmo_items.PREFIX):
        return ChoiceEvaluator(OlmoSource(name))
    if lm_eval_tasks.is_task(name):
        return LmEvalEvaluator(name)
    raise UsageError(
        f"tasks={name}: no such task; {suggest(name, TASKS)}; {lm_eval_tasks.suggest_tasks(name)}"
    )


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
