"""Scores the choices of a task: how probable a model finds each of them, in all and per byte."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from krill.data.encoding import Encoder
from krill.evaluation.task import Item, Task
from krill.evaluation.token_scorer import SequenceScore, TokenScorer, TokenSequence


@dataclass(frozen=True)
class ChoiceScores:
    """The scores of one item's choices, in their order."""

    logprobs: tuple[float, ...]
    """Natural logarithm of each choice's probability after the context."""
    bytes: tuple[int, ...]
    """UTF-8 bytes of each choice."""

    def choose(self, per_byte: bool = False) -> int:
        """Returns the index of the most probable choice, or of the one with the most probability per byte."""
        scores = [
            logprob / max(1, size) if per_byte else logprob
            for logprob, size in zip(self.logprobs, self.bytes, strict=True)
        ]
        return int(np.argmax(scores))


@dataclass(frozen=True)
class TaskScores:
    """The scores of all items of a task."""

    task: Task
    items: tuple[ChoiceScores, ...]
    truncated: int
    """The number of items whose context was cut at its beginning, for the context of the model."""

    @cached_property
    def correct(self) -> np.ndarray:
        """Whether the most probable choice is right; bool (items,)."""
        return self._compare(per_byte=False)

    @cached_property
    def correct_per_byte(self) -> np.ndarray:
        """Whether the choice with the most probability per byte is right; bool (items,)."""
        return self._compare(per_byte=True)

    def _compare(self, per_byte: bool) -> np.ndarray:
        pairs = zip(self.items, self.task.items, strict=True)
        return np.array([scores.choose(per_byte) == item.answer for scores, item in pairs], bool)


@dataclass(frozen=True)
class EncodedTask:
    """The items of a task as token sequences."""

    task: Task
    questions: tuple[tuple[TokenSequence, ...], ...]
    truncated: int


def encode_task(task: Task, encoder: Encoder, context_length: int) -> EncodedTask:
    """Encodes every choice with the context before it; only the choice is scored.

    As in lm-eval, spaces at the end of a context belong to the choices, a choice is what remains of the encoded whole
    after the length of the encoded context, and what exceeds the context of the model is cut at the beginning.
    """
    questions, truncated = [], 0
    for item in task.items:
        sequences, is_cut = encode_choices(item, encoder, context_length)
        questions.append(sequences)
        truncated += is_cut
    return EncodedTask(task, tuple(questions), truncated)


def encode_choices(
    item: Item, encoder: Encoder, context_length: int
) -> tuple[tuple[TokenSequence, ...], bool]:
    """Returns bos, context and choice for each choice of `item`, and whether the context was cut."""
    context = item.context.rstrip()
    spaces = item.context[len(context) :]
    texts = [context, *(context + spaces + choice for choice in item.choices)]
    encoded = encoder.encode(texts)
    ends = np.cumsum(encoded.lengths)
    parts = [
        encoded.tokens[end - length : end - 1] for end, length in zip(ends, encoded.lengths, strict=True)
    ]
    start, longest = len(parts[0]), context_length + 1  # the last token is not an input
    sequences = tuple(
        TokenSequence(tuple(part[-longest:].tolist()), min(len(part) - start, longest - 1))
        for part in parts[1:]
    )
    return sequences, max(map(len, parts[1:])) > longest


def combine_scores(encoded: EncodedTask, scores: Sequence[Sequence[SequenceScore]]) -> TaskScores:
    """Returns the scores of a task from those of its sequences, in the order of its questions."""
    return TaskScores(
        encoded.task,
        tuple(
            ChoiceScores(
                tuple(score.logprob for score in question),
                tuple(len(choice.encode()) for choice in item.choices),
            )
            for question, item in zip(scores, encoded.task.items, strict=True)
        ),
        encoded.truncated,
    )


def score_task(
    scorer: TokenScorer, encoded: EncodedTask, report: Callable[[int], None] = lambda count: None
) -> TaskScores:
    """Scores a task in this process."""
    scores = scorer.score(encoded.questions, report=report)
    return combine_scores(encoded, [scores[index] for index in range(len(encoded.questions))])
