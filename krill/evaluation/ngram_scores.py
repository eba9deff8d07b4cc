"""What unigram and trigram models of the training text score on a task."""

from __future__ import annotations

import numpy as np

from krill.data.store import Split
from krill.evaluation.choices import ChoiceScores, EncodedTask, TaskScores
from krill.evaluation.ngrams import NgramCounts

ORDERS = {"unigram": 1, "trigram": 3}


def score_with_ngrams(encoded: EncodedTask, train: Split, vocab_size: int) -> dict[str, TaskScores]:
    """Returns the scores of each n-gram model of `train`, by its name."""
    streams = [np.array(sequence.ids, np.int64) for question in encoded.questions for sequence in question]
    counts = NgramCounts(train, vocab_size, streams)
    return {
        name: TaskScores(
            encoded.task,
            tuple(
                ChoiceScores(
                    tuple(counts.score(sequence, order) for sequence in question),
                    tuple(len(choice.encode()) for choice in item.choices),
                )
                for question, item in zip(encoded.questions, encoded.task.items, strict=True)
            ),
            encoded.truncated,
        )
        for name, order in ORDERS.items()
    }
