"""Estimates how long an evaluation takes, before it; without torch, for a plan.

What the user has not asked for takes at most `TIME_SHARE` of the time of a training.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from krill.evaluation.bundled import PAIR_TASKS
from krill.evaluation.cloze import CHOICES, CONTEXT_CHARACTERS, ITEMS
from krill.evaluation.minimal_pairs.phenomenon import PAIRS
from krill.evaluation.ngrams import MAX_TOKENS
from krill.evaluation.task import TEXT
from krill.evaluation.token_sequence import TokenSequence

if TYPE_CHECKING:
    from krill.config.schema import EvaluationConfig
    from krill.evaluation.evaluator import EvaluationSettings
    from krill.evaluation.token_scorer import TokenScorer

TIME_SHARE = 0.05
"""Share of the time of the training."""
LIMITS = (200, 100, 50, 25)
"""Values of evaluation.limit that are tried if all items take too long."""
MIN_TOKENS = 20_000
"""Tokens of the smallest evaluation. A token of training takes at least as long as three forward passes of one, so
that a training of fewer than MIN_TOKENS / 3 / TIME_SHARE tokens is too short for it."""
SECONDS_PER_ITEM = 6e-4
"""Encoding, n-gram models and bootstrap for one item; measured on a core of an AMD EPYC."""
SECONDS_PER_COUNTED_TOKEN = 2e-7
"""Counting n-grams of the training text; on the same core."""
CHARACTERS_PER_PAIR = {"korean_pairs": 40, "english_pairs": 88}
"""Characters of both sentences of a pair, in the mean."""
_CHARACTERS_PER_TOKEN, _TOKENS_PER_WORD = 2, 4
_SAMPLE_SEQUENCES, _SAMPLE_TOKENS = 64, 32
"""Number of sequences, and of tokens of each, by which the speed of a model is measured."""


@dataclass(frozen=True)
class TextSize:
    """The tokens of the text of a run."""

    train: int
    validation: int


def estimate_seconds(
    tasks: Iterable[str],
    size: TextSize,
    settings: EvaluationSettings | EvaluationConfig,
    seconds_per_token: float,
    is_prepared: bool = False,
) -> float:
    """Returns about how long the tasks, which krill brings along, take on a model trained on a text of `size`.

    `is_prepared`: whether their items are encoded and scored by n-gram models already.
    """
    seconds = 0.0
    for task in tasks:
        tokens, items = count_tokens_and_items(task, size, settings)
        seconds += tokens * seconds_per_token
        if items and not is_prepared:
            seconds += items * SECONDS_PER_ITEM + min(size.train, MAX_TOKENS) * SECONDS_PER_COUNTED_TOKEN
    return seconds


def count_tokens_and_items(
    task: str, size: TextSize, settings: EvaluationSettings | EvaluationConfig
) -> tuple[int, int]:
    """Returns about how many tokens a model computes for a task, and the number of its items, 0 for a text."""
    if task == TEXT:
        tokens = min(settings.text_tokens, size.validation)
        return int(tokens / (1 - settings.overlap)), 0
    if task in PAIR_TASKS:
        items = len(PAIR_TASKS[task]) * min(settings.limit or PAIRS, PAIRS)
        return items * CHARACTERS_PER_PAIR[task] // _CHARACTERS_PER_TOKEN, items
    count = min(ITEMS, settings.limit or ITEMS)
    return count * (CONTEXT_CHARACTERS // _CHARACTERS_PER_TOKEN + _TOKENS_PER_WORD * CHOICES), count


def list_limits(configured: int | None) -> tuple[int | None, ...]:
    """Returns the values of evaluation.limit to try, beginning with the one that is `configured`."""
    return configured, *(limit for limit in LIMITS if configured is None or limit < configured)


def measure_seconds_per_token(scorer: TokenScorer, vocab_size: int) -> float:
    """Returns how long the scorer takes for a token of short sequences, once it is warm."""
    ids = np.random.default_rng(0).integers(vocab_size, size=(_SAMPLE_SEQUENCES, _SAMPLE_TOKENS)).tolist()
    questions = [[TokenSequence(tuple(row), _SAMPLE_TOKENS - 1)] for row in ids]
    scorer.score(questions[:1])
    started_at = time.perf_counter()
    scorer.score(questions)
    return (time.perf_counter() - started_at) / (_SAMPLE_SEQUENCES * _SAMPLE_TOKENS)
