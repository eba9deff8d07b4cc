"""A task: questions whose answers a model chooses by their probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from krill.config.signature import compute_signature


@dataclass(frozen=True)
class Item:
    """One question."""

    context: str
    """What comes before every choice; empty: the choices are whole documents."""
    choices: tuple[str, ...]
    """Continuations of the context, at least two."""
    answer: int
    """Index of the right choice."""
    phenomenon: str = ""
    """The part of the task that the item counts for."""


@dataclass(frozen=True)
class Task:
    """Items of one language, and how to report them."""

    name: str
    language: str
    """ISO 639-1 code: ko, en."""
    description: str
    items: tuple[Item, ...]
    version: int = 1

    @cached_property
    def item_hash(self) -> str:
        """Identifies the items, in their order."""
        return compute_signature(
            "evaluation items",
            self.version,
            [[item.context, item.choices, item.answer, item.phenomenon] for item in self.items],
        )
