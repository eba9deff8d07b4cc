"""What a model scores: a sequence of tokens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TokenSequence:
    """A sequence of which the last tokens are scored."""

    ids: tuple[int, ...]
    """At least two; the first, which is never scored, is usually bos."""
    num_scored: int
    """At least 1, less than the number of ids."""
