"""Estimates how long an evaluation takes, before it."""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np

from krill.data.store import Store
from krill.evaluation.bundled import PAIR_TASKS, build_pair_task
from krill.evaluation.cloze import CHOICES, CONTEXT_CHARACTERS, ITEMS
from krill.evaluation.evaluate import TEXT
from krill.evaluation.evaluator import EvaluationSettings
from krill.evaluation.ngrams import MAX_TOKENS
from krill.evaluation.token_scorer import TokenScorer
from krill.evaluation.token_sequence import TokenSequence

SECONDS_PER_ITEM = 6e-4
"""Encoding, n-gram models and bootstrap for one item; measured on a core of an AMD EPYC."""
SECONDS_PER_COUNTED_TOKEN = 2e-7
"""Counting n-grams of the training text; on the same core."""
_CHARACTERS_PER_TOKEN, _TOKENS_PER_WORD = 2, 4
_SAMPLE_SEQUENCES, _SAMPLE_TOKENS = 64, 32
"""Number of sequences, and of tokens of each, by which the speed of a model is measured."""


def estimate_seconds(
    tasks: Iterable[str], store: Store, settings: EvaluationSettings, seconds_per_token: float
) -> float:
    """Returns about how long the tasks, which krill brings along, take on a model trained on the text in `store`."""
    seconds = 0.0
    for task in tasks:
        tokens, items = _count_tokens_and_items(task, store, settings)
        seconds += tokens * seconds_per_token + items * SECONDS_PER_ITEM
        if items:
            seconds += min(store.train.tokens, MAX_TOKENS) * SECONDS_PER_COUNTED_TOKEN
    return seconds


def _count_tokens_and_items(task: str, store: Store, settings: EvaluationSettings) -> tuple[int, int]:
    """Returns about how many tokens a model computes for a task, and the number of its items, 0 for a text."""
    if task == TEXT:
        tokens = min(settings.text_tokens, store.validation.tokens)
        return int(tokens / (1 - settings.overlap)), 0
    if task in PAIR_TASKS:
        items = build_pair_task(task, settings.limit).items
        texts = [choice for item in items for choice in item.choices]
        return sum(map(len, texts)) // _CHARACTERS_PER_TOKEN, len(items)
    count = min(ITEMS, settings.limit or ITEMS)
    return count * (CONTEXT_CHARACTERS // _CHARACTERS_PER_TOKEN + _TOKENS_PER_WORD * CHOICES), count


def measure_seconds_per_token(scorer: TokenScorer, vocab_size: int) -> float:
    """Returns how long the scorer takes for a token of short sequences, once it is warm."""
    ids = np.random.default_rng(0).integers(vocab_size, size=(_SAMPLE_SEQUENCES, _SAMPLE_TOKENS)).tolist()
    questions = [[TokenSequence(tuple(row), _SAMPLE_TOKENS - 1)] for row in ids]
    scorer.score(questions[:1])
    started_at = time.perf_counter()
    scorer.score(questions)
    return (time.perf_counter() - started_at) / (_SAMPLE_SEQUENCES * _SAMPLE_TOKENS)
