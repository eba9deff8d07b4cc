"""Cleaning repairs what cannot be stored and touches nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krill.data.cleaning import clean


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a\ud83d\ude00b", "a😀b"),
        ("a\ud83db", "a\ufffdb"),
        ("\ude00\ud83d", "\ufffd\ufffd"),
        ("a\x00b\x07c", "abc"),
        ("a\tb\nc", "a\tb\nc"),
        ("one\r\ntwo\rthree", "one\ntwo\nthree"),
        ("  \n가나다\t ", "가나다"),
        ("\x00 \x01", ""),
        ("a \x00", "a"),
    ],
)
def test_repairs(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


@pytest.mark.parametrize(
    "text", ["ㅋㅋㅋ ㅠㅠ", "x² ½ ™ ﬁ", "a\u00a0b", "가", "\u200bzero", "＜|eos|＞", "a\x7f\x85b"]
)
def test_leaves_other_text_alone(text: str) -> None:
    assert clean(text) == text


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_becomes_utf8_and_stays(text: str) -> None:
    cleaned = clean(text)
    assert cleaned.encode().decode() == cleaned
    assert clean(cleaned) == cleaned
