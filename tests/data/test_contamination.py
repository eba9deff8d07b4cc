"""Leaks are what the plain way of counting them gives."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krill.data import contamination as module
from krill.data.contamination import measure_contamination
from krill.data.store import Split

BOS, EOS = 0, 1
TEXTS = st.lists(st.lists(st.integers(2, 3), min_size=1, max_size=30), max_size=6)


@dataclass(frozen=True)
class InMemorySplit:
    """Documents as a split gives them."""

    texts: list[list[int]]
    kind: str = "<u2"

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.kind)

    @cached_property
    def stream(self) -> np.ndarray:
        return np.array([token for text in self.texts for token in (BOS, *text, EOS)], self.dtype)

    @property
    def ends(self) -> np.ndarray:
        return np.cumsum([len(text) + 2 for text in self.texts]).astype(np.uint64)

    @property
    def documents(self) -> int:
        return len(self.texts)

    @property
    def tokens(self) -> int:
        return len(self.stream)

    def copy(self, start: int, stop: int) -> np.ndarray:
        assert 0 <= start <= stop <= self.tokens
        return self.stream[start:stop]


def count(
    train: list[list[int]], validation: list[list[int]], ngram: int, dtype: str = "<u2"
) -> dict[str, Any]:
    splits = (cast(Split, InMemorySplit(texts, dtype)) for texts in (train, validation))
    return measure_contamination(*splits, ngram)


def count_naively(train: list[list[int]], validation: list[list[int]], ngram: int) -> dict[str, Any]:
    def ngrams(text: list[int]) -> list[tuple[int, ...]]:
        return [tuple(text[start : start + ngram]) for start in range(len(text) - ngram + 1)]

    known = {gram for text in train for gram in ngrams(text)}
    leaked = [
        {start + step for start, gram in enumerate(ngrams(text)) if gram in known for step in range(ngram)}
        for text in validation
    ]
    return {
        "ngram": ngram,
        "validation_tokens": sum(map(len, validation)),
        "leaked_tokens": sum(map(len, leaked)),
        "documents": len(validation),
        "leaked_documents": sum(
            2 * len(found) >= len(text) for found, text in zip(leaked, validation, strict=True)
        ),
    }


@given(TEXTS, TEXTS, st.integers(1, 13), st.sampled_from(["<u2", "<u4"]))
def test_equals_the_plain_way(
    train: list[list[int]], validation: list[list[int]], ngram: int, dtype: str
) -> None:
    assert count(train, validation, ngram, dtype) == count_naively(train, validation, ngram)


@pytest.mark.parametrize("ngram", [4, 9, 13])
def test_across_stretches(ngram: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """N-grams over a stretch's border are found, wherever they lie."""
    random = np.random.default_rng(0)
    train, validation = (
        [random.integers(2, 3 + 12 // ngram, random.integers(1, 60)).tolist() for _ in range(40)]
        for _ in range(2)
    )
    validation += [text[start % 9 : start % 9 + 15] or [2] for start, text in enumerate(train[:30])]
    expected = count_naively(train, validation, ngram)
    assert 0 < expected["leaked_tokens"] < expected["validation_tokens"]
    for stretch in (1, 5, 64):
        monkeypatch.setattr(module, "_CHUNK_TOKENS", stretch)
        assert count(train, validation, ngram) == expected


def test_a_quotation_is_counted_a_shorter_one_is_not() -> None:
    words = np.arange(2, 2000).tolist()
    found = count([words], [[*range(3000, 3010), *words[100:120]], words[500:512] + [4000] * 30], 13)
    assert found["leaked_tokens"] == 20
    assert found["leaked_documents"] == 1


def test_boundaries_are_no_part_of_an_ngram() -> None:
    """The place decides, not the id: a text may hold the tokens that stand between documents."""
    train = [[5, 6], [7, 8]]
    assert count(train, [[5, 6, EOS, BOS, 7, 8]], 4)["leaked_tokens"] == 0
    assert count(train, [[6, EOS, BOS, 7]], 4)["leaked_tokens"] == 0
    assert count([[5, EOS, BOS, 8]], [[5, EOS, BOS, 8]], 4)["leaked_tokens"] == 4


@pytest.mark.parametrize(
    ("train", "validation"), [([], []), ([[2] * 20], []), ([], [[2] * 20]), ([[2]], [[2]])]
)
def test_nothing_to_compare(train: list[list[int]], validation: list[list[int]]) -> None:
    found = count(train, validation, 13)
    assert found["leaked_tokens"] == found["leaked_documents"] == 0
    assert found["documents"] == len(validation)


def test_of_a_large_split_every_kth_document_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SAMPLE_TOKENS", 40)
    texts = [[10 * number + place for place in range(8)] for number in range(12)]
    found = count(
        texts[:6], texts, 3
    )  # 120 tokens: every fourth document, and the first two of the three leak
    assert found == {
        "ngram": 3,
        "validation_tokens": 24,
        "leaked_tokens": 16,
        "documents": 3,
        "leaked_documents": 2,
    }
