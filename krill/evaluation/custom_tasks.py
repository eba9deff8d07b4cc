"""Tasks of the user: a YAML with its items, or a function that returns items."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krill.config.custom_code import build_custom_code_error, hash_custom_function, import_custom_function
from krill.config.paths import expand_home
from krill.errors import KrillError, UsageError
from krill.evaluation.item_records import RecordReader
from krill.evaluation.languages import find_main_language
from krill.evaluation.lm_eval_tasks import fixed_seeds
from krill.evaluation.task import Task
from krill.evaluation.task_file import TASK_SUFFIXES, read_task_file

if TYPE_CHECKING:  # which import torch, and a submission looks at the names of tasks
    from krill.evaluation.evaluator import EvaluationSettings
    from krill.evaluation.subject import Subject

DEFAULT_FUNCTION = "build_items"
"""The function of a Python file that is named without one."""


def is_custom_task(name: str) -> bool:
    """Returns whether a value of tasks= is a file or a function of the user."""
    module, colon, _ = name.partition(":")
    return name.endswith((*TASK_SUFFIXES, ".py", ".jsonl")) or (colon != "" and "." in module)


def list_custom_tasks(tasks: str | Sequence[str]) -> list[str]:
    """Returns those of a value of evaluation.tasks that are of the user."""
    return [] if isinstance(tasks, str) else list(filter(is_custom_task, tasks))


def get_task_function(name: str) -> str | None:
    """Returns the reference to the function of a custom task, such as my_task.py:build_items; None for a YAML."""
    if name.endswith((*TASK_SUFFIXES, ".jsonl")):
        return None
    return f"{name}:{DEFAULT_FUNCTION}" if name.endswith(".py") else name


class CustomTaskSource:
    """The items of a task of the user.

    Raises UsageError with file, line or field for what is wrong in its files.
    """

    def __init__(self, reference: str):
        """`reference`: task.yaml, task.py, task.py:function or package.module:function."""
        self.reference = reference
        if reference.endswith(".jsonl"):
            raise UsageError(
                f"tasks={reference}: is not a task but its items; write a YAML with name, language and "
                f"items: {Path(reference).name}, and use tasks=FILE.yaml"
            )
        self._function = get_task_function(reference)
        self.name = self._task.name

    @property
    def content_hash(self) -> list[str | None]:
        """Identifies the code and the items."""
        code = hash_custom_function(self._function) if self._function else None
        return [code, self._task.language, self._task.item_hash]

    def identify(self, settings: EvaluationSettings) -> Any:
        return [self.content_hash, settings.limit]

    def build(self, subject: Subject, settings: EvaluationSettings) -> Task:
        return self._task.select(settings.limit)

    @cached_property
    def _task(self) -> Task:
        if self._function is None:
            return read_task_file(expand_home(self.reference))
        return _call_function(self._function)


def _call_function(reference: str) -> Task:
    """Returns the task that a function of the user returns, or the items of it, which are checked.

    What it draws from the global generators is always the same, and a training draws from them as without it.
    """
    code, _, name = reference.rpartition(":")
    reader = RecordReader()
    with fixed_seeds(), redirect_stdout(sys.stderr):
        function = import_custom_function(reference)
        try:
            value = function()
            records = value.items if isinstance(value, Task) else value
            if isinstance(records, (str, bytes, dict)) or not isinstance(records, Iterable):
                raise UsageError(
                    f"{reference}: returned {type(value).__name__}; return a list of items, or a Task"
                )
            for number, record in enumerate(records):
                reader.add(record, f"{reference}: item {number}")
        except KrillError:
            raise
        except (Exception, SystemExit) as error:
            raise build_custom_code_error(reference, error, "fails") from error
    items = reader.finish(reference)
    if isinstance(value, Task):
        _check_task(reference, value)
        return replace(value, items=items, notes={**value.notes, **reader.notes})
    title = Path(code).stem if name == DEFAULT_FUNCTION else name
    language = find_main_language([item.context + item.choices[item.answer] for item in items])
    return Task(
        title, language, (inspect.getdoc(function) or "").partition("\n")[0], items, notes=reader.notes
    )


def _check_task(reference: str, task: Task) -> None:
    """Raises UsageError for a Task that has another type in a field than it declares."""
    for field, expected, is_valid in (
        ("name", "a text", isinstance(task.name, str)),
        ("language", "a code of ISO 639, such as ko or en", _is_language(task.language)),
        ("description", "a text", isinstance(task.description, str)),
        ("notes", "a mapping of names to numbers", _are_notes(task.notes)),
    ):
        if not is_valid:
            raise UsageError(
                f"{reference}: {field} of its Task is {getattr(task, field)!r}; it must be {expected}"
            )


def _is_language(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[a-z]{2,3}", value) is not None


def _are_notes(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and isinstance(count, int) for name, count in value.items()
    )
