"""What unigram and trigram models of the training text score on a task."""

from __future__ import annotations

import numpy as np

from krill.data.store import Split
from krill.evaluation.choices import EncodedTask, TaskScores, build_task_scores
from krill.evaluation.ngrams import NgramCounts

ORDERS = {"unigram": 1, "trigram": 3}
"""Name of a model, a field of `Score` → the length of its n-grams."""


def score_with_ngrams(encoded: EncodedTask, train: Split, vocab_size: int) -> dict[str, TaskScores]:
    """Returns the scores of each n-gram model of `train`, by its name."""
    streams = [np.array(sequence.ids, np.int64) for question in encoded.questions for sequence in question]
    counts = NgramCounts(train, vocab_size, streams)
    return {
        name: build_task_scores(
            encoded.task,
            (tuple(counts.score(sequence, order) for sequence in question) for question in encoded.questions),
        )
        for name, order in ORDERS.items()
    }
