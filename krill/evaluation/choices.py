"""Scores the choices of a task: how probable a model finds each of them, in all and per byte."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from krill.data.encoding import Encoder
from krill.errors import UsageError
from krill.evaluation.task import Item, Task
from krill.evaluation.token_scorer import SequenceKey, SequenceScore, TokenScorer, TokenSequence

TIE_TOLERANCE = 1e-9
"""Relative difference of logprobs below which two choices are equally probable."""


@dataclass(frozen=True)
class ChoiceScores:
    """The scores of one item's choices, in their order."""

    logprobs: tuple[float, ...]
    """Natural logarithm of each choice's probability after the context."""
    bytes: tuple[int, ...]
    """UTF-8 bytes of each choice."""

    def grade(self, answer: int, per_byte: bool = False) -> float:
        """Returns 1 if the choice `answer` is the most probable, or has the most probability per byte, else 0.

        Where several choices are equally probable it is the chance of guessing among them: an n-gram model cannot
        tell sentences apart that have the same n-grams.
        """
        scores = np.array(self.logprobs)
        if per_byte:
            scores = scores / np.maximum(1, self.bytes)
        is_best = scores >= scores.max() - TIE_TOLERANCE * max(1.0, abs(float(scores.max())))
        return float(is_best[answer] / is_best.sum())


@dataclass(frozen=True)
class TaskScores:
    """The scores of all items of a task."""

    task: Task
    items: tuple[ChoiceScores, ...]
    truncated: int
    """The number of items whose context was cut at its beginning, for the context of the model."""

    @cached_property
    def correct(self) -> np.ndarray:
        """Whether the most probable choice is right, 0 or 1, between them for a tie; float64 (items,)."""
        return self._grade(per_byte=False)

    @cached_property
    def correct_per_byte(self) -> np.ndarray:
        """The same for the choice with the most probability per byte."""
        return self._grade(per_byte=True)

    def _grade(self, per_byte: bool) -> np.ndarray:
        pairs = zip(self.items, self.task.items, strict=True)
        return np.array([scores.grade(item.answer, per_byte) for scores, item in pairs])


@dataclass(frozen=True)
class EncodedTask:
    """The items of a task as token sequences."""

    task: Task
    questions: tuple[tuple[TokenSequence, ...], ...]
    truncated: int


def encode_task(task: Task, encoder: Encoder, context_length: int) -> EncodedTask:
    """Encodes every choice with the context before it; only the choice is scored.

    As in lm-eval, spaces at the end of a context belong to the choices, a choice is what remains of the encoded whole
    after the length of the encoded context, and what exceeds the context of the model is cut at the beginning. At
    least the last token is scored, also where a tokenizer merges the choice with the context. Raises UsageError for a
    choice of which the tokenizer encodes nothing.
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
    for choice, part in zip(item.choices, parts[1:], strict=True):
        if len(part) < 2:
            raise UsageError(
                f"the tokenizer encodes nothing of the choice {choice!r}; leave its task out of tasks="
            )
    sequences = tuple(
        TokenSequence(tuple(part[-longest:].tolist()), max(1, min(len(part) - start, longest - 1)))
        for part in parts[1:]
    )
    return sequences, max(map(len, parts[1:])) > longest


def combine_scores(encoded: EncodedTask, scores: Mapping[SequenceKey, SequenceScore]) -> TaskScores:
    """Returns the scores of a task from those of its sequences."""
    return TaskScores(
        encoded.task,
        tuple(
            ChoiceScores(
                tuple(scores[index, position].logprob for position in range(len(item.choices))),
                tuple(len(choice.encode()) for choice in item.choices),
            )
            for index, item in enumerate(encoded.task.items)
        ),
        encoded.truncated,
    )


def score_task(
    scorer: TokenScorer, encoded: EncodedTask, report: Callable[[int], None] = lambda count: None
) -> TaskScores:
    """Returns the scores of all items; `report` gets numbers of sequences."""
    return combine_scores(encoded, scorer.score(encoded.questions, report))
