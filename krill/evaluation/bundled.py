"""The tasks that krill brings along: minimal pairs of a language."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from krill.evaluation.minimal_pairs.english.phenomena import PHENOMENA as ENGLISH
from krill.evaluation.minimal_pairs.phenomenon import Phenomenon, draw_pairs
from krill.evaluation.task import Item, Task

ENGLISH_PAIRS = "english_pairs"
PAIR_TASKS: dict[str, Sequence[Phenomenon]] = {ENGLISH_PAIRS: ENGLISH}
"""Task → its phenomena."""


@cache
def build_pair_task(name: str, limit: int | None = None) -> Task:
    """Returns the task `name` of PAIR_TASKS with at most `limit` pairs of each phenomenon.

    The right sentence is the first of the choices in every other item.
    """
    items = []
    for phenomenon in PAIR_TASKS[name]:
        for index, pair in enumerate(draw_pairs(phenomenon)[:limit]):
            choices = (pair.good, pair.bad) if index % 2 == 0 else (pair.bad, pair.good)
            items.append(Item("", choices, index % 2, phenomenon.name))
    language = PAIR_TASKS[name][0].language
    return Task(name, language, "Which of two sentences is grammatical.", tuple(items))
