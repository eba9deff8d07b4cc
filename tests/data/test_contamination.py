"""Tests of the contamination measure against a naive implementation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krill.data import contamination as module
from krill.data.contamination import find_contaminated_texts, measure_contamination
from krill.data.store import Split

BOS, EOS = 0, 1
TEXTS = st.lists(st.lists(st.integers(2, 3), min_size=1, max_size=30), max_size=6)


@dataclass(frozen=True)
class InMemorySplit:
    """A split in memory."""

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

    train_ngrams = {gram for text in train for gram in ngrams(text)}
    leaked = [
        {
            start + step
            for start, gram in enumerate(ngrams(text))
            if gram in train_ngrams
            for step in range(ngram)
        }
        for text in validation
    ]
    return {
        "ngram": ngram,
        "validation_tokens": sum(map(len, validation)),
        "leaked_tokens": sum(map(len, leaked)),
        "documents": len(validation),
        "leaked_documents": sum(
            2 * len(positions) >= len(text) for positions, text in zip(leaked, validation, strict=True)
        ),
    }


@settings(deadline=None)
@given(TEXTS, TEXTS, st.integers(1, 13), st.sampled_from(["<u2", "<u4"]))
def test_counts_equal_a_naive_implementation(
    train: list[list[int]], validation: list[list[int]], ngram: int, dtype: str
) -> None:
    assert count(train, validation, ngram, dtype) == count_naively(train, validation, ngram)


@pytest.mark.parametrize("ngram", [4, 9, 13])
def test_ngrams_across_chunks_are_found(ngram: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    train, validation = (
        [random.integers(2, 3 + 12 // ngram, random.integers(1, 60)).tolist() for _ in range(40)]
        for _ in range(2)
    )
    validation += [text[start % 9 : start % 9 + 15] or [2] for start, text in enumerate(train[:30])]
    expected = count_naively(train, validation, ngram)
    assert 0 < expected["leaked_tokens"] < expected["validation_tokens"]
    for chunk_tokens in (1, 5, 64):
        monkeypatch.setattr(module, "_CHUNK_TOKENS", chunk_tokens)
        assert count(train, validation, ngram) == expected


def test_quotation_is_counted_only_if_long_enough() -> None:
    words = np.arange(2, 2000).tolist()
    result = count([words], [[*range(3000, 3010), *words[100:120]], words[500:512] + [4000] * 30], 13)
    assert result["leaked_tokens"] == 20
    assert result["leaked_documents"] == 1


def test_ngrams_do_not_cross_document_boundaries() -> None:
    """Boundaries are positions, not ids: a text may contain the ids of bos and eos."""
    train = [[5, 6], [7, 8]]
    assert count(train, [[5, 6, EOS, BOS, 7, 8]], 4)["leaked_tokens"] == 0
    assert count(train, [[6, EOS, BOS, 7]], 4)["leaked_tokens"] == 0
    assert count([[5, EOS, BOS, 8]], [[5, EOS, BOS, 8]], 4)["leaked_tokens"] == 4


@pytest.mark.parametrize(
    ("train", "validation"), [([], []), ([[2] * 20], []), ([], [[2] * 20]), ([[2]], [[2]])]
)
def test_splits_without_ngrams_have_no_leaks(train: list[list[int]], validation: list[list[int]]) -> None:
    result = count(train, validation, 13)
    assert result["leaked_tokens"] == result["leaked_documents"] == 0
    assert result["documents"] == len(validation)


def test_every_kth_document_of_a_large_split_is_examined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SAMPLE_TOKENS", 40)
    texts = [[10 * number + index for index in range(8)] for number in range(12)]
    # 120 tokens: every fourth document is examined, and the first two of the three leak.
    result = count(texts[:6], texts, 3)
    assert result == {
        "ngram": 3,
        "validation_tokens": 24,
        "leaked_tokens": 16,
        "documents": 3,
        "leaked_documents": 2,
    }


def is_contaminated_naively(train: list[list[int]], text: list[int], ngram: int) -> bool:
    def ngrams(tokens: list[int], size: int) -> list[tuple[int, ...]]:
        return [tuple(tokens[start : start + size]) for start in range(len(tokens) - size + 1)]

    if not text:
        return False
    size = len(text) if len(text) <= module.WHOLE_TEXT_TOKENS else ngram
    known = {gram for document in train for gram in ngrams(document, size)}
    leaked = [gram in known for gram in ngrams(text, size)]
    return 2 * sum(leaked) >= len(leaked)


@settings(deadline=None)
@given(
    TEXTS,
    st.lists(st.lists(st.integers(2, 3), max_size=30), max_size=6),
    st.integers(1, 13),
    st.integers(13, 30),
)
def test_contaminated_texts_equal_a_naive_implementation(
    train: list[list[int]], texts: list[list[int]], ngram: int, whole_tokens: int
) -> None:
    texts += [text[1:] for text in train]
    split = cast(Split, InMemorySplit(train))
    encoded = [np.array([BOS, *text, EOS], "<u2") for text in texts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WHOLE_TEXT_TOKENS", whole_tokens)
        expected = [is_contaminated_naively(train, text, ngram) for text in texts]
        assert find_contaminated_texts(split, encoded, ngram).tolist() == expected
