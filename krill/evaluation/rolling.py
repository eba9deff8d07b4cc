"""Scores whole texts, whatever their length: windows that overlap, with every token scored once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from krill.evaluation.statistics import Interval, bootstrap_ratio
from krill.evaluation.token_scorer import Report, TokenScorer, ignore_progress
from krill.evaluation.token_sequence import TokenSequence


@dataclass(frozen=True)
class EncodedText:
    """A document to score."""

    ids: tuple[int, ...]
    """bos and the tokens of the text, at least one, without eos."""
    bytes: int
    """UTF-8 bytes of the text."""
    source: str = ""
    """The name of the source of the document; empty: unknown."""


@dataclass(frozen=True)
class TextScores:
    """What documents cost to encode with a model; arrays of one value for each document."""

    nats: np.ndarray
    """Sum over the tokens of the text, float64."""
    tokens: np.ndarray
    """int64, without bos and eos."""
    bytes: np.ndarray
    """int64."""

    @property
    def nats_per_token(self) -> float:
        """The loss, in nats per token of all documents."""
        return float(self.nats.sum() / self.tokens.sum())

    @property
    def bits_per_byte(self) -> float:
        """Bits per UTF-8 byte of all documents."""
        return float(self.nats.sum() / np.log(2) / self.bytes.sum())

    def estimate_bits_per_byte(self) -> Interval:
        """Returns bits per byte with the interval of resampled documents."""
        return bootstrap_ratio(self.nats / np.log(2), self.bytes.astype(np.float64))

    def select(self, is_selected: np.ndarray) -> TextScores:
        """Returns the documents where `is_selected`, bool (documents,), is true."""
        return TextScores(self.nats[is_selected], self.tokens[is_selected], self.bytes[is_selected])


def make_windows(ids: Sequence[int], context_length: int, overlap: int = 1) -> list[TokenSequence]:
    """Returns windows of at most `context_length` inputs in which every token after the first is scored once.

    A window begins `overlap` tokens, at least 1, before the first one that it scores; the last one earlier, so that
    it is full. With an overlap of 1 they are lm-eval's `get_rolling_token_windows`.
    """
    ids = tuple(ids)
    end = min(len(ids), context_length + 1)
    windows = [TokenSequence(ids[:end], end - 1)]
    stride = context_length - overlap + 1
    while end < len(ids):
        scored = min(stride, len(ids) - end)
        end += scored
        windows.append(TokenSequence(ids[end - context_length - 1 : end], scored))
    return windows


def score_texts(
    scorer: TokenScorer,
    texts: Sequence[EncodedText],
    context_length: int,
    overlap: int,
    report: Report = ignore_progress,
) -> TextScores:
    """Returns the scores of the texts in windows that repeat `overlap` tokens, at least 1."""
    windows: list[list[TokenSequence]] = []
    owners: list[int] = []
    for index, text in enumerate(texts):
        parts = make_windows(text.ids, context_length, overlap)
        windows += [[part] for part in parts]
        owners += [index] * len(parts)
    nats = np.zeros(len(texts))
    scores = scorer.score(windows, report)
    for window, owner in enumerate(owners):
        nats[owner] -= scores[window, 0].logprob
    return TextScores(
        nats,
        np.array([len(text.ids) - 1 for text in texts], np.int64),
        np.array([text.bytes for text in texts], np.int64),
    )
