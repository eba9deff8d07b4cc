"""What a model scores: a sequence of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TokenSequence:
    """A sequence of which the last tokens are scored."""

    ids: tuple[int, ...]
    """At least two; the first, which is never scored, is usually bos."""
    num_scored: int
    """At least 1, less than the number of ids."""


def count_common_tokens(sequences: Sequence[TokenSequence]) -> int:
    """Returns with how many tokens all of `sequences` begin; the last of the shortest is never an input, nor counted.

    All begin with what the first and the last of them in lexicographic order have in common.
    """
    ids = [sequence.ids for sequence in sequences]
    first, last, limit = min(ids), max(ids), min(map(len, ids)) - 1
    for position in range(limit):
        if first[position] != last[position]:
            return position
    return limit
