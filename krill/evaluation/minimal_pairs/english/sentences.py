"""Assembly of sentences and pairs from their words."""

from __future__ import annotations

from random import Random

from krill.evaluation.minimal_pairs.english.everyday import EVERYDAY
from krill.evaluation.minimal_pairs.english.technical import TECHNICAL
from krill.evaluation.minimal_pairs.english.vocabulary import Action, Noun, Register, Theme
from krill.evaluation.minimal_pairs.phenomenon import Pair

REGISTERS = (EVERYDAY, TECHNICAL)
"""Half of the pairs of each phenomenon are drawn from either."""


def write_sentence(*parts: str, end: str = ".") -> str:
    """Joins the parts that are not empty, and adds a capital letter and an end."""
    text = " ".join(part for part in parts if part)
    return text[0].upper() + text[1:] + end


def contrast(before: str, good: str, bad: str, after: str, end: str = ".") -> Pair:
    """Returns two sentences that differ between `before` and `after`."""
    return Pair(write_sentence(before, good, after, end=end), write_sentence(before, bad, after, end=end))


def order_forms(side: int, first: str, second: str) -> tuple[str, str]:
    """Returns the right form and the wrong one: on side 0 the first is right."""
    return (second, first) if side else (first, second)


def choose_register(random: Random) -> Register:
    """Chooses everyday life or technical documentation."""
    return random.choice(REGISTERS)


def choose_theme(random: Random) -> Theme:
    """Chooses nouns of which the same can be said."""
    return random.choice(choose_register(random).themes)


def choose_action(random: Random) -> Action:
    """Chooses a transitive verb with its subjects and objects."""
    return random.choice(choose_register(random).actions)


def choose_deed(random: Random) -> Action:
    """Chooses what people or programs do at some point in time."""
    return random.choice([action for action in choose_register(random).actions if action.is_deed])


def write_head(random: Random, theme: Theme, noun: Noun, is_plural: bool) -> str:
    """Returns a definite noun phrase, half of the time with an adjective."""
    adjective = random.choice(theme.adjectives) + " " if random.random() < 0.5 else ""
    return f"the {adjective}{noun.inflect(is_plural)}"
