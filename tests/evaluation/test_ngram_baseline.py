"""The 5-gram model learns what 5-grams determine, is not misled by chance, and takes a small part of a run's time."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from stores import make_byte_tokenizer, write_store

from krill.data.store import Store
from krill.evaluation import ngram_baseline
from krill.evaluation.ngram_baseline import choose_counted_tokens, compute_ngram_baseline
from krill.evaluation.ngrams import NgramCounts

LETTERS = np.array(list("abcdefgh"))


def write_documents(folder: Path, documents: list[np.ndarray]) -> Store:
    """Writes a store of documents of letters, the last tenth of them held out."""
    tokenizer = make_byte_tokenizer(folder / "tokenizer")
    texts = [("a", "".join(LETTERS[ids])) for ids in documents]
    cut = len(texts) * 9 // 10
    return write_store(folder / "store", tokenizer, texts[:cut], texts[cut:])


def generate(rng: np.random.Generator, length: int) -> np.ndarray:
    """Each letter is determined by those one and four before it, nine times in ten."""
    ids = rng.integers(0, 8, length)
    for index in range(4, length):
        if rng.random() < 0.9:
            ids[index] = (3 * ids[index - 1] + ids[index - 4]) % 8
    return ids


def test_five_tokens_are_learned(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    store = write_documents(tmp_path, [generate(rng, 400) for _ in range(250)])
    losses = {order: compute_ngram_baseline(store, None, 10**9, order).loss for order in (1, 4, 5)}
    entropy = -(0.9125 * np.log(0.9125) + 7 * 0.0125 * np.log(0.0125))
    assert losses[1] == pytest.approx(np.log(8), abs=0.05)
    assert losses[4] > np.log(8) - 0.1, "a letter is independent of the three before it"
    assert entropy < losses[5] < entropy + 0.15
    baseline = compute_ngram_baseline(store, None, 10**9)
    assert (baseline.order, baseline.counted_tokens) == (5, store.train.tokens)
    assert baseline.scored_tokens == store.validation.tokens - store.validation.documents, (
        "bos is not predicted"
    )
    assert compute_ngram_baseline(store, np.array([3, 7]), 10**9).scored_tokens == 802


def test_chance_is_not_learned(tmp_path: Path) -> None:
    """There are many more 5-grams than tokens, so most contexts have occurred once or not at all."""
    rng = np.random.default_rng(0)
    store = write_documents(tmp_path, [rng.integers(0, 8, 60) for _ in range(200)])
    assert compute_ngram_baseline(store, None, 10**9).loss < np.log(8) * 61 / 60 + 0.12


@pytest.mark.parametrize("documents", [[[]] * 20, [[1]] * 20, [[1, 2, 3]] * 20])
def test_the_shortest_texts_have_a_loss(tmp_path: Path, documents: list[list[int]]) -> None:
    store = write_documents(tmp_path, [np.array(ids, np.int64) for ids in documents])
    assert np.isfinite(compute_ngram_baseline(store, None, 10**9).loss)


def test_a_long_validation_text_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    store = write_documents(tmp_path, [generate(rng, 100) for _ in range(100)])
    monkeypatch.setattr(ngram_baseline, "MAX_SCORED_TOKENS", 600)
    assert compute_ngram_baseline(store, None, 10**9).scored_tokens == 5 * 101


@pytest.mark.parametrize("chunk_tokens", [50, 2**20])
def test_long_ngrams_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_tokens: int) -> None:
    monkeypatch.setattr("krill.evaluation.ngrams._CHUNK_TOKENS", chunk_tokens)
    rng = np.random.default_rng(0)
    store = write_documents(tmp_path, [rng.integers(0, 3, 40) for _ in range(30)])
    text, scored = (split.copy(0, split.tokens) for split in (store.train, store.validation))
    counts = NgramCounts(store.train, store.vocab_size, [scored], 5)
    for length in range(1, 6):
        grams = Counter(zip(*(text[start:].tolist() for start in range(length)), strict=False))
        wanted = zip(*(scored[start:].tolist() for start in range(length)), strict=False)
        assert counts.count(scored, length).tolist() == [grams[gram] for gram in wanted]


def test_a_part_of_the_text_is_counted_evenly(tmp_path: Path) -> None:
    store = write_documents(tmp_path, [np.full(100, letter % 8) for letter in range(1000)])
    scored = store.validation.copy(0, store.validation.tokens)
    counts = NgramCounts(store.train, store.vocab_size, [scored], 5, max_tokens=2**14)
    assert counts.tokens == 2**14
    letters = np.sort(counts.unigrams)[-8:]
    assert letters.min() > 0.08 * counts.tokens


def test_the_time_of_the_run_limits_what_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = write_documents(tmp_path, [np.full(98, 1) for _ in range(1000)])
    assert store.train.tokens == 90_000
    assert choose_counted_tokens(store, None, 10**9, run_seconds=10) == 90_000
    assert choose_counted_tokens(store, None, 500, run_seconds=10) == 500, "as many as the run was trained on"
    assert choose_counted_tokens(store, None, 10**9, run_seconds=0) == 0
    assert choose_counted_tokens(store, None, 10**9, run_seconds=3) == 0, (
        "a small part is no model of the text"
    )
    monkeypatch.setattr(ngram_baseline, "MIN_COUNTED_TOKENS", 2**10)
    assert choose_counted_tokens(store, None, 10**9, run_seconds=3) == 2**16
