"""A task: questions whose answers a model chooses by their probabilities."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from krill.config.signature import compute_signature

TEXT = "text"
"""The name of the task that scores documents instead of items: bits per byte."""


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
    """At least one."""
    version: int = 1
    """Changes when the rules that make the items change."""
    notes: Mapping[str, int] = field(default_factory=dict)
    """What a reader of the scores has to know about the items, such as the number of duplicates left out."""

    def select(self, limit: int | None) -> Task:
        """Returns the task with the first `limit` items of each phenomenon; None: all."""
        seen: Counter[str] = Counter()
        items = []
        for item in self.items:
            seen[item.phenomenon] += 1
            if limit is None or seen[item.phenomenon] <= limit:
                items.append(item)
        return replace(self, items=tuple(items))

    @cached_property
    def item_hash(self) -> str:
        """Identifies the items, in their order."""
        return compute_signature(
            "evaluation items",
            self.version,
            [[item.context, item.choices, item.answer, item.phenomenon] for item in self.items],
        )
