"""A grammatical phenomenon, and the minimal pairs that are drawn for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

PAIRS = 300
"""Number of pairs of each phenomenon: an accuracy near 50 % is then known to within 6 percentage points."""
_SEED = 20
MAX_DRAWS_PER_PAIR = 50


@dataclass(frozen=True)
class Pair:
    """Two sentences that differ in one place."""

    good: str
    """The grammatical one."""
    bad: str


@dataclass(frozen=True)
class Phenomenon:
    """A rule of grammar."""

    name: str
    language: str
    """ISO 639-1 code."""
    description: str
    """A sentence of documentation."""
    example: Pair
    sides: int
    """The number of ways in which a pair can come out, such as the form of a particle that is right. As many pairs
    are drawn for each, so that a model that always prefers one form, or the shorter sentence, scores 50 %."""
    draw: Callable[[Random, int], Pair]
    """Draws a pair whose right form is that of a side, 0 to sides - 1."""


def draw_pairs(phenomenon: Phenomenon, count: int = PAIRS, seed: int = _SEED) -> list[Pair]:
    """Returns `count` different pairs, in which the sides take turns; always the same ones for a seed.

    Raises ValueError if the word lists do not give this number.
    """
    random = Random(f"{phenomenon.name} {seed}")
    pairs: dict[Pair, None] = {}
    for _ in range(count * MAX_DRAWS_PER_PAIR):
        if len(pairs) == count:
            break
        pairs.setdefault(phenomenon.draw(random, len(pairs) % phenomenon.sides))
    if len(pairs) < count:
        raise ValueError(f"{phenomenon.name}: only {len(pairs)} different pairs; add words")
    return list(pairs)
