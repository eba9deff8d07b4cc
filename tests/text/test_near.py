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

from krill.config.schema import Near
from krill.errors import UsageError
from krill.text import near as module
from krill.text.near import Signer, check, identity, near_copies, similarity

NEAR = Near(threshold=0.8, unit="character", size=10, bands=16, rows=8)
WORDS = Near(threshold=0.5, unit="word", size=1, bands=2, rows=1)
KOREAN = "영화 배우 연기 정말 재미 감동 시간 이야기 처음 마지막 생각 사람 다시 조금 너무 그냥 그리고 하지만"
ENGLISH = "film actor acting really fun moving time story first last thought person again little too"


def sentences(words: str, seed: int, length: int = 150) -> str:
    """A text of its own, of so many words."""
    chosen = random.Random(seed)
    return " ".join(f"{chosen.choice(words.split())}{chosen.randrange(5)}" for _ in range(length))


def copies_of(texts: list[str], keys: np.ndarray, near: Near) -> list[int]:
    def read(indices: Sequence[int]) -> list[str]:
        assert len(set(indices)) == len(indices)
        return [texts[index] for index in indices]

    found = near_copies(len(texts), lambda band: np.ascontiguousarray(keys[:, band]), read, near)
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
        patch.setattr(module, "CACHE_BYTES", cache)
        patch.setattr(module, "_BLOCK", block)
        copies = copies_of(texts, keys, WORDS)
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
    assert copies_of(texts, same, WORDS) == [-1, 0, -1]
    assert copies_of(texts[1:], same[1:], WORDS) == [-1, -1]
    assert copies_of(["1 2 3 4", "2 3 4 5 6", "2 3 4 5 6 7"], same, WORDS)[1:] == [0, -1]


def test_no_document() -> None:
    assert copies_of([], np.zeros((0, 2), np.uint64), WORDS) == []


def test_a_full_bucket_costs_no_more_and_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    """Thousands of different documents behind one key: comparisons stay linear, and it is said."""
    compared = 0

    def counted(a: np.ndarray, b: np.ndarray) -> float:
        nonlocal compared
        compared += 1
        return similarity(a, b)

    texts = [f"menu {number} {number + 10_000}" for number in range(3000)]
    texts += [texts[0] + " more", texts[2500] + " more"]
    keys = np.stack((np.zeros(len(texts)), np.arange(len(texts)) + 1), axis=1).astype(np.uint64)
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING, "krill"):
        patch.setattr(module, "similarity", counted)
        copies = copies_of(texts, keys, WORDS)
    assert compared <= module.COMPARISONS * len(texts)
    assert copies[:3000] == [-1] * 3000
    assert copies[3000:] == [0, -1]  # the bucket remembers its first
    assert f"{3000 - module.COMPARISONS:,} of 3,002 documents" in caplog.text


def test_likeliest_are_compared_first() -> None:
    """Past the limit, documents that share more keys come before earlier ones."""
    texts = [f"a{number} b{number}" for number in range(40)]
    texts += ["x y", "x y z"]
    keys = np.array([[0, number] for number in range(40)] + [[7, 99], [0, 99]], np.uint64)
    keys = np.concatenate((keys, keys[:, 1:]), axis=1)
    near = WORDS.model_copy(update={"bands": 3})
    assert copies_of(texts, keys, near)[-1] == 40


def test_off_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)
    off = NEAR.model_copy(update={"threshold": None})
    check(off)
    assert identity(off) is None


@pytest.mark.parametrize("ask", [check, identity, Signer])
def test_without_rensa_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch, ask: Any) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(UsageError, match=r"data.near.threshold needs rensa: pip install 'krill\[dedup\]'"):
        ask(NEAR)


def test_identity_has_every_value_and_the_versions() -> None:
    rensa = pytest.importorskip("rensa")
    found = identity(NEAR)
    assert {key: found[key] for key in Near.model_fields} == NEAR.model_dump()
    assert found["versions"][-1] == rensa.RMinHash.ALGORITHM_VERSION
    assert identity(NEAR.model_copy(update={"size": 9})) != found


def test_keys_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rensa")
    texts = [sentences(KOREAN, seed, 5 + 20 * seed) for seed in range(7)]
    together = Signer(NEAR).keys(texts)
    assert together.shape == (7, 16)
    assert together.dtype == np.uint64
    monkeypatch.setattr(module, "_BATCH_DOCUMENTS", 2)
    np.testing.assert_array_equal(Signer(NEAR).keys(texts), together)
    np.testing.assert_array_equal(Signer(NEAR).keys(texts[3:4]), together[3:4])
    assert Signer(NEAR).keys([]).shape == (0, 16)
    assert len(np.unique(together)) == together.size


def edited(text: str, share: float, seed: int) -> str:
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
    originals = [sentences(words, seed) for seed in range(60)]
    changed = [edited(text, 0.01, seed) for seed, text in enumerate(originals[:20])]
    spaced = [text.replace("1 ", "1").replace("3 ", "3\n") for text in originals[20:40]]
    longer = [f"{text}\n\n출처: 신문 {seed}" for seed, text in enumerate(originals[40:])]
    texts = originals + changed + spaced + longer
    copies = copies_of(texts, Signer(NEAR).keys(texts), NEAR)
    assert copies == [-1] * 60 + list(range(60))
