"""Near duplicates: the rule is followed to the letter, copies are found, others are kept."""

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
from krill.text import minhash as module
from krill.text.minhash import (
    MinHashSigner,
    compute_minhash_identity,
    find_near_duplicates,
    jaccard_similarity,
    require_rensa,
)

NEAR = MinHashConfig(threshold=0.8, unit="character", size=10, bands=16, rows=8)
WORDS = MinHashConfig(threshold=0.5, unit="word", size=1, bands=2, rows=1)
KOREAN = "영화 배우 연기 정말 재미 감동 시간 이야기 처음 마지막 생각 사람 다시 조금 너무 그냥 그리고 하지만"
ENGLISH = "film actor acting really fun moving time story first last thought person again little too"


def make_text(words: str, seed: int, length: int = 150) -> str:
    """A text of its own, of so many words."""
    chosen = random.Random(seed)
    return " ".join(f"{chosen.choice(words.split())}{chosen.randrange(5)}" for _ in range(length))


def find_copies(texts: list[str], keys: np.ndarray, near: MinHashConfig) -> list[int]:
    def read(indices: Sequence[int]) -> list[str]:
        assert len(set(indices)) == len(indices)
        return [texts[index] for index in indices]

    found = find_near_duplicates(len(texts), lambda band: np.ascontiguousarray(keys[:, band]), read, near)
    assert found.dtype == np.int64
    return found.tolist()


def jaccard(one: str, other: str) -> float:
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
def test_the_rule(documents: list[tuple[str, int, int]], cache: int, block: int) -> None:
    """Dropped if and only if an earlier kept document shares a key and enough shingles; nothing else counts."""
    texts = [text for text, _, _ in documents]
    keys = np.array([keys for _, *keys in documents], np.uint64).reshape(-1, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SHINGLE_CACHE_BYTES", cache)
        patch.setattr(module, "_BLOCK_DOCUMENTS", block)
        copies = find_copies(texts, keys, WORDS)
    for later, copy in enumerate(copies):
        alike = [
            earlier
            for earlier in range(later)
            if copies[earlier] == -1
            and (keys[earlier] == keys[later]).any()
            and jaccard(texts[earlier], texts[later]) >= 0.5
        ]
        assert copy in (alike or [-1])


def test_not_by_way_of_a_dropped_document() -> None:
    """b is a copy of a, c of b but not of a: c stays."""
    texts = ["1 2 3 4", "2 3 4 5 6", "4 5 6 7 8"]
    same = np.zeros((3, 2), np.uint64)
    assert find_copies(texts, same, WORDS) == [-1, 0, -1]
    assert find_copies(texts[1:], same[1:], WORDS) == [-1, -1]
    assert find_copies(["1 2 3 4", "2 3 4 5 6", "2 3 4 5 6 7"], same, WORDS)[1:] == [0, -1]


def test_no_document() -> None:
    assert find_copies([], np.zeros((0, 2), np.uint64), WORDS) == []


def test_a_full_bucket_costs_no_more_and_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    """Thousands of different documents behind one key: comparisons stay linear, and it is said."""
    compared = 0

    def counted(a: np.ndarray, b: np.ndarray) -> float:
        nonlocal compared
        compared += 1
        return jaccard_similarity(a, b)

    texts = [f"menu {number} {number + 10_000}" for number in range(3000)]
    texts += [texts[0] + " more", texts[2500] + " more"]
    keys = np.stack((np.zeros(len(texts)), np.arange(len(texts)) + 1), axis=1).astype(np.uint64)
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING, "krill"):
        patch.setattr(module, "jaccard_similarity", counted)
        copies = find_copies(texts, keys, WORDS)
    assert compared <= module.MAX_COMPARISONS * len(texts)
    assert copies[:3000] == [-1] * 3000
    assert copies[3000:] == [0, -1]  # the bucket remembers its first
    assert f"{3000 - module.MAX_COMPARISONS:,} of 3,002 documents" in caplog.text


def test_likeliest_are_compared_first() -> None:
    """Past the limit, documents that share more keys come before earlier ones."""
    texts = [f"a{number} b{number}" for number in range(40)]
    texts += ["x y", "x y z"]
    keys = np.array([[0, number] for number in range(40)] + [[7, 99], [0, 99]], np.uint64)
    keys = np.concatenate((keys, keys[:, 1:]), axis=1)
    near = WORDS.model_copy(update={"bands": 3})
    assert find_copies(texts, keys, near)[-1] == 40


def test_off_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)
    off = NEAR.model_copy(update={"threshold": None})
    require_rensa(off)
    assert compute_minhash_identity(off) is None


@pytest.mark.parametrize("ask", [require_rensa, compute_minhash_identity, MinHashSigner])
def test_without_rensa_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch, ask: Any) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(UsageError, match=r"data.minhash.threshold needs rensa: pip install 'krill\[dedup\]'"):
        ask(NEAR)


def test_identity_has_every_value_and_the_versions() -> None:
    rensa = pytest.importorskip("rensa")
    found = compute_minhash_identity(NEAR)
    assert {key: found[key] for key in MinHashConfig.model_fields} == NEAR.model_dump()
    assert found["versions"][-1] == rensa.RMinHash.ALGORITHM_VERSION
    assert compute_minhash_identity(NEAR.model_copy(update={"size": 9})) != found


def test_keys_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rensa")
    texts = [make_text(KOREAN, seed, 5 + 20 * seed) for seed in range(7)]
    together = MinHashSigner(NEAR).keys(texts)
    assert together.shape == (7, 16)
    assert together.dtype == np.uint64
    monkeypatch.setattr(module, "_BATCH_DOCUMENTS", 2)
    np.testing.assert_array_equal(MinHashSigner(NEAR).keys(texts), together)
    np.testing.assert_array_equal(MinHashSigner(NEAR).keys(texts[3:4]), together[3:4])
    assert MinHashSigner(NEAR).keys([]).shape == (0, 16)
    assert len(np.unique(together)) == together.size


def replace_words(text: str, share: float, seed: int) -> str:
    """`text` with a share of its words replaced."""
    chosen = random.Random(seed)
    words = text.split(" ")
    for index in chosen.sample(range(len(words)), max(1, round(share * len(words)))):
        words[index] = f"edit{chosen.randrange(10**6)}"
    return " ".join(words)


@pytest.mark.parametrize("words", [KOREAN, ENGLISH])
def test_copies_are_found_and_others_kept(words: str) -> None:
    """By the shipped setting: 1 % of the words edited, other spacing, an added line; against other texts."""
    pytest.importorskip("rensa")
    originals = [make_text(words, seed) for seed in range(60)]
    changed = [replace_words(text, 0.01, seed) for seed, text in enumerate(originals[:20])]
    spaced = [text.replace("1 ", "1").replace("3 ", "3\n") for text in originals[20:40]]
    longer = [f"{text}\n\n출처: 신문 {seed}" for seed, text in enumerate(originals[40:])]
    texts = originals + changed + spaced + longer
    copies = find_copies(texts, MinHashSigner(NEAR).keys(texts), NEAR)
    assert copies == [-1] * 60 + list(range(60))
