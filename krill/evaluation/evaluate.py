"""Finds the evaluator of a task by the name of the task, and evaluates a model with it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Literal

from krill.config.schema import DataConfig
from krill.config.signature import compute_signature
from krill.config.suggestions import suggest
from krill.data.store import Store
from krill.errors import UsageError
from krill.evaluation import lm_eval_tasks, olmo_items
from krill.evaluation.bundled import PAIR_TASKS, TASK_LANGUAGES
from krill.evaluation.choice_evaluator import ChoiceEvaluator
from krill.evaluation.choice_sources import ClozeSource, OlmoSource, PairSource
from krill.evaluation.custom_tasks import CustomTaskSource, is_custom_task
from krill.evaluation.evaluator import EvaluationSettings, Evaluator
from krill.evaluation.languages import list_languages
from krill.evaluation.last_word_evaluator import LastWordEvaluator
from krill.evaluation.lm_eval_evaluator import LmEvalEvaluator
from krill.evaluation.results import TaskResult
from krill.evaluation.subject import Subject, sample_text
from krill.evaluation.task_file import MAX_NAME_LENGTH
from krill.evaluation.text_evaluator import TextEvaluator
from krill.evaluation.text_sources import HeldOutText, SourceText
from krill.evaluation.token_scorer import Report, ignore_progress
from krill.tokenizer.artifact import TokenizerFolder

TEXT, CLOZE = HeldOutText.name, ClozeSource.name
TASKS = (TEXT, *PAIR_TASKS, CLOZE)
"""The names of all tasks that need nothing but krill."""


def choose_tasks(
    tasks: Literal["auto"] | list[str],
    store: Store | None,
    tokenizer: TokenizerFolder,
    has_other_text: bool = False,
) -> list[str]:
    """Returns the names of the tasks, each once; for auto those in the languages of the text in `store`.

    `has_other_text`: whether the task text has documents from another source than the held-out text of the run.
    """
    if tasks != "auto":
        return expand_tasks(tasks)
    pairs = list(PAIR_TASKS)
    if store is not None:
        languages = list_languages(sample_text(store, tokenizer))
        pairs = [task for task, language in TASK_LANGUAGES.items() if language in languages]
    has_held_out = store is not None and store.validation.tokens > 0
    text = [TEXT] if has_held_out or has_other_text else []
    return [*text, *pairs, *([CLOZE] if has_held_out else [])]


def expand_tasks(names: Iterable[str]) -> list[str]:
    """Returns the names of tasks, each once; a collection of lm-eval that has no score becomes its tasks."""
    tasks: dict[str, None] = {}
    for name in names:
        is_own = name in TASKS or name.startswith(olmo_items.OLMO_PREFIX) or is_custom_task(name)
        tasks |= dict.fromkeys([name] if is_own else lm_eval_tasks.expand(name))
    return list(tasks)


def find_evaluators(names: Iterable[str], data: DataConfig | None = None) -> dict[str, Evaluator]:
    """Returns the evaluator of each task; raises UsageError as `find_evaluator`, and for two of one name."""
    evaluators: dict[str, Evaluator] = {}
    origins: dict[str, str] = {}
    for task in names:
        evaluators[task] = evaluator = find_evaluator(task, data)
        if other := origins.get(evaluator.name):
            raise UsageError(
                f"tasks={task}: its name is {evaluator.name}, as that of {other}; use another name in one of them"
            )
        origins[evaluator.name] = task
    return evaluators


def find_evaluator(name: str, data: DataConfig | None = None) -> Evaluator:
    """Returns the evaluator of the task `name`, or of a file or function of the user.

    `data`: the documents of the task text; None: those that the run held out.
    Raises UsageError for an unknown task, and for what is wrong in the user's files.
    """
    if name == TEXT:
        return TextEvaluator(HeldOutText() if data is None else SourceText(data))
    if name == CLOZE:
        return ChoiceEvaluator(ClozeSource())
    if name in PAIR_TASKS:
        return ChoiceEvaluator(PairSource(name))
    if name == f"{olmo_items.OLMO_PREFIX}lambada":
        return LastWordEvaluator(name)
    if name.startswith(olmo_items.OLMO_PREFIX):
        return ChoiceEvaluator(OlmoSource(name))
    if is_custom_task(name):
        return ChoiceEvaluator(_open_custom_source(name))
    if lm_eval_tasks.is_task(name):
        return LmEvalEvaluator(name)
    raise UsageError(
        f"tasks={name}: no such task; {suggest(name, TASKS)}; {lm_eval_tasks.suggest_tasks(name)}; "
        "a task of your own is a file .yaml or .py"
    )


def _open_custom_source(name: str) -> CustomTaskSource:
    source = CustomTaskSource(name)
    if source.name in TASKS:
        raise UsageError(
            f"tasks={name}: its name is {source.name}, which krill has a task of; use another name"
        )
    if "/" in source.name:  # separates the parts of the name of a metric
        raise UsageError(f"tasks={name}: its name is {source.name}; use a name without /")
    if not source.name.isprintable() or not 0 < len(source.name) <= MAX_NAME_LENGTH:
        raise UsageError(
            f"tasks={name}: its name is {source.name!r}; use 1 to {MAX_NAME_LENGTH} characters, on one line"
        )
    return source


def evaluate_task(
    evaluator: Evaluator,
    subject: Subject,
    settings: EvaluationSettings,
    report: Report = ignore_progress,
) -> TaskResult:
    """Returns the scores of `subject`, the same on every rank; `report` gets the progress.

    Raises UsageError for a task that needs the text of the run, without it.
    """
    started_at = time.perf_counter()
    if subject.share.world_size > 1:
        _require_same_items(evaluator, subject, settings)
    result = evaluator.evaluate(subject, settings, report)
    seconds = round(time.perf_counter() - started_at, 2)
    return result.model_copy(update={"model": subject.name, "seconds": seconds})


def _require_same_items(evaluator: Evaluator, subject: Subject, settings: EvaluationSettings) -> None:
    """Raises UsageError on all ranks if the code of a task made other items on one of them."""
    signatures = subject.share.gather(compute_signature(evaluator.identify(settings)))
    if len(set(signatures)) > 1:
        raise UsageError(
            f"{evaluator.name}: its items differ between the ranks; make the same ones in every process, as with "
            "random.Random(0)"
        )
