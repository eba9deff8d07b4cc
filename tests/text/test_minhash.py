"""Near duplicates are dropped exactly by the documented rule; edited copies are found, other texts are kept."""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krill.config.schema import MinHashConfig
from krill.errors import UsageError
from krill.text import minhash
from krill.text.minhash import (
    MinHashSigner,
    compute_jaccard_similarity,
    compute_minhash_identity,
    find_near_duplicates,
    require_rensa,
)

DEFAULT_CONFIG = MinHashConfig(threshold=0.8, unit="character", size=10, bands=16, rows=8)
WORD_CONFIG = MinHashConfig(threshold=0.5, unit="word", size=1, bands=2, rows=1)
KOREAN = "영화 배우 연기 정말 재미 감동 시간 이야기 처음 마지막 생각 사람 다시 조금 너무 그냥 그리고 하지만"
ENGLISH = "film actor acting really fun moving time story first last thought person again little too"


def make_text(words: str, seed: int, length: int = 150) -> str:
    """Returns a random text of `length` words."""
    rng = random.Random(seed)
    return " ".join(f"{rng.choice(words.split())}{rng.randrange(5)}" for _ in range(length))


def find_duplicates(texts: list[str], keys: np.ndarray, config: MinHashConfig) -> list[int]:
    def read_texts(indices: Sequence[int]) -> list[str]:
        assert len(set(indices)) == len(indices)
        return [texts[index] for index in indices]

    duplicates = find_near_duplicates(
        len(texts), lambda band: np.ascontiguousarray(keys[:, band]), read_texts, config
    )
    assert duplicates.dtype == np.int64
    return duplicates.tolist()


def word_jaccard(one: str, other: str) -> float:
    a, b = set(one.split()), set(other.split())
    return len(a & b) / len(a | b) if a | b else 0.0


@given(
    st.lists(
        st.tuples(st.text("abcd ", max_size=8).map(" ".join), st.integers(0, 3), st.integers(0, 3)),
        max_size=30,
    ),
    st.sampled_from([0, 300, 2**20]),
    st.integers(1, 7),
)
def test_drops_exactly_what_the_rule_says(
    documents: list[tuple[str, int, int]], cache_bytes: int, block_size: int
) -> None:
    """A document is dropped if and only if an earlier kept document shares a key and enough shingles with it."""
    texts = [text for text, _, _ in documents]
    keys = np.array([keys for _, *keys in documents], np.uint64).reshape(-1, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minhash, "SHINGLE_CACHE_BYTES", cache_bytes)
        patch.setattr(minhash, "_BLOCK_DOCUMENTS", block_size)
        duplicates = find_duplicates(texts, keys, WORD_CONFIG)
    for later, original in enumerate(duplicates):
        similar = [
            earlier
            for earlier in range(later)
            if duplicates[earlier] == -1
            and (keys[earlier] == keys[later]).any()
            and word_jaccard(texts[earlier], texts[later]) >= 0.5
        ]
        assert original in (similar or [-1])


def test_similarity_to_a_dropped_document_does_not_count() -> None:
    """b duplicates a, c duplicates b but not a: c is kept."""
    texts = ["1 2 3 4", "2 3 4 5 6", "4 5 6 7 8"]
    same_keys = np.zeros((3, 2), np.uint64)
    assert find_duplicates(texts, same_keys, WORD_CONFIG) == [-1, 0, -1]
    assert find_duplicates(texts[1:], same_keys[1:], WORD_CONFIG) == [-1, -1]
    texts[2] = "2 3 4 5 6 7"
    assert find_duplicates(texts, same_keys, WORD_CONFIG)[1:] == [0, -1]


def test_no_documents() -> None:
    assert find_duplicates([], np.zeros((0, 2), np.uint64), WORD_CONFIG) == []


def test_comparisons_in_a_full_bucket_are_bounded_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    """With a thousand different documents behind one key, comparisons stay linear and a warning is logged."""
    num_comparisons = 0

    def count_comparisons(a: np.ndarray, b: np.ndarray) -> float:
        nonlocal num_comparisons
        num_comparisons += 1
        return compute_jaccard_similarity(a, b)

    texts = [f"menu {number} {number + 10_000}" for number in range(1000)]
    texts += [texts[0] + " more", texts[800] + " more"]
    keys = np.stack((np.zeros(len(texts)), np.arange(len(texts)) + 1), axis=1).astype(np.uint64)
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING, "krill"):
        patch.setattr(minhash, "compute_jaccard_similarity", count_comparisons)
        duplicates = find_duplicates(texts, keys, WORD_CONFIG)
    assert num_comparisons <= minhash.MAX_COMPARISONS * len(texts)
    assert duplicates[:1000] == [-1] * 1000
    assert duplicates[1000:] == [0, -1]  # the bucket records its first documents
    assert f"{1000 - minhash.MAX_COMPARISONS:,} of 1,002 documents" in caplog.text


def test_documents_with_most_shared_keys_are_compared_first() -> None:
    """Beyond the limit of comparisons they come before earlier documents."""
    texts = [f"a{number} b{number}" for number in range(40)]
    texts += ["x y", "x y z"]
    keys = np.array([[0, number] for number in range(40)] + [[7, 99], [0, 99]], np.uint64)
    keys = np.concatenate((keys, keys[:, 1:]), axis=1)
    config = WORD_CONFIG.model_copy(update={"bands": 3})
    assert find_duplicates(texts, keys, config)[-1] == 40


def test_disabled_detection_does_not_need_rensa(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)
    disabled = DEFAULT_CONFIG.model_copy(update={"threshold": None})
    require_rensa(disabled)
    assert compute_minhash_identity(disabled) is None


@pytest.mark.parametrize("use_rensa", [require_rensa, compute_minhash_identity, MinHashSigner])
def test_the_error_for_missing_rensa_names_the_package(
    monkeypatch: pytest.MonkeyPatch, use_rensa: Any
) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(UsageError, match=r"data.minhash.threshold needs rensa: pip install .*\[dedup\]"):
        use_rensa(DEFAULT_CONFIG)


def test_identity_has_every_setting_and_the_versions() -> None:
    rensa = pytest.importorskip("rensa")
    identity = compute_minhash_identity(DEFAULT_CONFIG)
    assert {key: identity[key] for key in MinHashConfig.model_fields} == DEFAULT_CONFIG.model_dump()
    assert identity["versions"][-1] == rensa.RMinHash.ALGORITHM_VERSION
    assert compute_minhash_identity(DEFAULT_CONFIG.model_copy(update={"size": 9})) != identity


def test_keys_do_not_depend_on_the_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rensa")
    texts = [make_text(KOREAN, seed, 5 + 20 * seed) for seed in range(7)]
    signer = MinHashSigner(DEFAULT_CONFIG)
    keys = signer.compute_keys(texts)
    assert keys.shape == (7, 16)
    assert keys.dtype == np.uint64
    monkeypatch.setattr(minhash, "_BATCH_DOCUMENTS", 2)
    np.testing.assert_array_equal(signer.compute_keys(texts), keys)
    np.testing.assert_array_equal(signer.compute_keys(texts[3:4]), keys[3:4])
    assert signer.compute_keys([]).shape == (0, 16)
    assert len(np.unique(keys)) == keys.size


def replace_words(text: str, share: float, seed: int) -> str:
    """Returns `text` with a share of its words replaced."""
    rng = random.Random(seed)
    words = text.split(" ")
    for index in rng.sample(range(len(words)), max(1, round(share * len(words)))):
        words[index] = f"edit{rng.randrange(10**6)}"
    return " ".join(words)


@pytest.mark.parametrize("words", [KOREAN, ENGLISH])
def test_edited_copies_are_found_and_other_texts_kept(words: str) -> None:
    """The default settings find copies with 1 % of the words edited, other spacing, or an added line."""
    pytest.importorskip("rensa")
    originals = [make_text(words, seed) for seed in range(60)]
    edited = [replace_words(text, 0.01, seed) for seed, text in enumerate(originals[:20])]
    respaced = [text.replace("1 ", "1").replace("3 ", "3\n") for text in originals[20:40]]
    longer = [f"{text}\n\n출처: 신문 {seed}" for seed, text in enumerate(originals[40:])]
    texts = originals + edited + respaced + longer
    keys = MinHashSigner(DEFAULT_CONFIG).compute_keys(texts)
    assert find_duplicates(texts, keys, DEFAULT_CONFIG) == [-1] * 60 + list(range(60))
