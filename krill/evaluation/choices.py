"""Scores the choices of a task: how probable a model finds each of them, in all and per byte."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from krill.data.encoding import Encoder
from krill.errors import UsageError
from krill.evaluation.task import Task
from krill.evaluation.token_scorer import Report, TokenScorer, ignore_progress
from krill.evaluation.token_sequence import TokenSequence

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
    """The choices of each item, after its context, in their order."""
    truncated: int
    """The number of items that were cut at their beginnings, for the context of the model."""
    unknown: int = 0
    """The number of items of which the tokenizer does not represent a part."""


def encode_task(task: Task, encoder: Encoder, context_length: int) -> EncodedTask:
    """Encodes every choice with the context before it; only the choice is scored.

    Raises UsageError for a choice of which the tokenizer encodes nothing.
    """
    pairs = [(item.context, choice) for item in task.items for choice in item.choices]
    encoded = iter(encode_continuations(pairs, encoder, context_length))
    questions, truncated, unknown = [], 0, 0
    for item in task.items:
        sequences, are_cut = zip(*(next(encoded) for _ in item.choices), strict=True)
        pairs_of_item = zip(sequences, item.choices, strict=True)
        questions.append(tuple(require_scored_token(sequence, choice) for sequence, choice in pairs_of_item))
        truncated += any(are_cut)
        unknown += any(encoder.count_unknown(np.array(sequence.ids)) for sequence in sequences)
    return EncodedTask(task, tuple(questions), truncated, unknown)


def require_scored_token(sequence: TokenSequence, text: str) -> TokenSequence:
    """Returns a sequence that ends with `text`, with at least its last token scored.

    No token is scored where a tokenizer merges the text with its context. Raises UsageError if it encodes nothing.
    """
    if len(sequence.ids) < 2:
        raise UsageError(f"the tokenizer encodes nothing of {text!r}; leave its task out of tasks=")
    return replace(sequence, num_scored=max(1, sequence.num_scored))


def encode_continuations(
    pairs: Sequence[tuple[str, str]], encoder: Encoder, context_length: int
) -> list[tuple[TokenSequence, bool]]:
    """Returns bos, context and continuation of each pair, and whether they were cut; the continuation is scored.

    As in lm-eval, spaces at the end of a context belong to the continuation, a continuation is what remains of the
    encoded whole after the length of the encoded context, and what exceeds the context of the model is cut at the
    beginning. `num_scored` is 0 for a continuation that adds no token.
    """
    contexts = list(dict.fromkeys(context.rstrip() for context, _ in pairs))
    lengths = dict(zip(contexts, encoder.encode(contexts).lengths - 1, strict=True))  # without eos
    whole = encoder.encode([context + continuation for context, continuation in pairs])
    longest = context_length + 1  # the last token is not an input
    sequences = []
    for (context, _), end, length in zip(pairs, np.cumsum(whole.lengths), whole.lengths, strict=True):
        ids = whole.tokens[end - length : end - 1][-longest:].tolist()
        scored = int(length) - 1 - int(lengths[context.rstrip()])
        sequences.append((TokenSequence(tuple(ids), max(0, min(scored, longest - 1))), length - 1 > longest))
    return sequences


def score_task(scorer: TokenScorer, encoded: EncodedTask, report: Report = ignore_progress) -> TaskScores:
    """Returns the scores of all items; `report` gets how many sequences of how many are scored."""
    scores = scorer.score(encoded.questions, report)
    logprobs = (
        tuple(scores[index, position].logprob for position in range(len(question)))
        for index, question in enumerate(encoded.questions)
    )
    return build_task_scores(encoded.task, logprobs)


def build_task_scores(task: Task, logprobs: Iterable[tuple[float, ...]]) -> TaskScores:
    """Returns the scores of a task from the logprobs of the choices of each item."""
    items = (
        ChoiceScores(values, tuple(len(choice.encode()) for choice in item.choices))
        for values, item in zip(logprobs, task.items, strict=True)
    )
    return TaskScores(task, tuple(items))
