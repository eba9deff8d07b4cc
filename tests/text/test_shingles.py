"""Hashes correspond one to one to the shingles of a plain implementation, whatever the text and batch."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krill.text import shingles
from krill.text.shingles import hash_shingles, sort_unique

Unit = Literal["word", "character"]
UNITS: tuple[Unit, ...] = ("word", "character")
WORD_HASHES = [0x517754B97913B655, 0xC9406AEE43B1FEDB]
CHARACTER_HASHES = [0xDBC3AF1AEEAE9AF3, 0x9AD96E059F4BFB7E, 0x62D3D66EB968EB35]
TEXTS = st.lists(st.text(st.sampled_from("ab가 나\n\t\u3000\u00a0ㅋ🦐"), max_size=40), max_size=8)


def cut_shingles(text: str, unit: Unit, size: int) -> list[tuple[str, ...]]:
    """Returns the shingles of a text by a plain implementation."""
    units = text.split() if unit == "word" else list("".join(text.split()))
    return (
        [tuple(units[start : start + size]) for start in range(max(1, len(units) - size + 1))]
        if units
        else []
    )


def hash_each(texts: list[str], unit: Unit, size: int) -> list[list[int]]:
    """Returns the hashes of each text."""
    hashes, offsets = hash_shingles(texts, unit, size)
    assert hashes.dtype == np.uint64
    assert offsets.dtype == np.int64
    assert len(offsets) == len(texts) + 1
    return [part.tolist() for part in np.split(hashes, offsets[1:-1])] if texts else []


@given(TEXTS, st.sampled_from(UNITS), st.integers(1, 6))
def test_hashes_are_equal_exactly_for_equal_shingles(texts: list[str], unit: Unit, size: int) -> None:
    shingle_of: dict[int, tuple[str, ...]] = {}
    hash_of: dict[tuple[str, ...], int] = {}
    for text, hashes in zip(texts, hash_each(texts, unit, size), strict=True):
        expected = cut_shingles(text, unit, size)
        assert len(hashes) == len(expected)
        for value, shingle in zip(hashes, expected, strict=True):
            assert shingle_of.setdefault(value, shingle) == shingle
            assert hash_of.setdefault(shingle, value) == value


@given(TEXTS, st.sampled_from(UNITS), st.integers(1, 6))
def test_hashes_of_a_text_do_not_depend_on_the_batch(texts: list[str], unit: Unit, size: int) -> None:
    assert hash_each(texts, unit, size) == [hash_each([text], unit, size)[0] for text in texts]


@pytest.mark.parametrize("unit", UNITS)
def test_no_shingle_is_lost_at_group_borders(unit: Unit, monkeypatch: pytest.MonkeyPatch) -> None:
    """For texts shorter than, as long as, and longer than a group."""
    texts = [
        "".join(f"{number % 7} " for number in range(length)) for length in (0, 1, 15, 16, 17, 40, 3, 8, 8)
    ]
    monkeypatch.setattr(shingles, "MAX_GROUP_CODE_POINTS", 32)
    monkeypatch.setattr(shingles, "_POWERS", shingles._POWERS[:34])
    for text, hashes in zip(texts, hash_each(texts, unit, 3), strict=True):
        expected = cut_shingles(text, unit, 3)
        assert len(hashes) == len(expected)
        assert len(set(hashes)) == len(set(expected))


def test_a_word_longer_than_a_group_is_cut() -> None:
    (hashes,) = hash_each(["가" * (2 * shingles.MAX_GROUP_CODE_POINTS + 1)], "word", 1)
    assert len(hashes) == 3
    assert hashes[0] == hashes[1]


def test_character_shingles_do_not_depend_on_spacing() -> None:
    spaced, unspaced = hash_each(["이 영화 정말 재미 없어요\n", "이영화 정말재미없어요"], "character", 5)
    assert spaced == unspaced


def test_every_bit_of_the_hashes_varies() -> None:
    """MinHash compares all 64 bits."""
    hashes, _ = hash_shingles([" ".join(map(str, range(4000)))], "word", 1)
    bits = np.unpackbits(hashes.view(np.uint8).reshape(-1, 8), axis=1).mean(axis=0)
    assert np.abs(bits - 0.5).max() < 0.05


def test_hashes_never_change() -> None:
    """Stored keys and signatures depend on them: a change requires a new VERSION."""
    assert hash_each(["the quick brown fox", "나는 학교에 간다"], "word", 3)[0] == WORD_HASHES
    assert hash_each(["가나다 라"], "character", 2)[0] == CHARACTER_HASHES
    assert shingles.VERSION == 1


@given(st.lists(st.integers(0, 2**64 - 1)))
def test_sort_unique_gives_the_distinct_values_in_order(values: list[int]) -> None:
    assert sort_unique(np.array(values, np.uint64)).tolist() == sorted(set(values))
