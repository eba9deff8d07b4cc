"""Cleaning repairs text that cannot be stored and changes nothing else."""

from __future__ import annotations

import sys
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krill.cli.compose import compose_config
from krill.config.schema import DataConfig, TrainConfig
from krill.config.validation import validate_config
from krill.errors import UsageError
from krill.text import pii
from krill.text.cleaning import build_cleaner, clean, compute_cleaning_identity

ANY_TEXT = st.text(st.characters(exclude_categories=()))
DEFAULT_DATA = validate_config(TrainConfig, compose_config("train", [])).data


def make_data(**changes: Any) -> DataConfig:
    """Returns the default data configuration with some keys changed."""
    return DEFAULT_DATA.model_copy(update=changes)


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
def test_repairs_text_that_cannot_be_stored(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


@pytest.mark.parametrize(
    "text", ["ㅋㅋㅋ ㅠㅠ", "x² ½ ™ ﬁ", "a\u00a0b", "가", "\u200bzero", "＜|eos|＞", "a\x7f\x85b"]
)
def test_other_text_is_unchanged(text: str) -> None:
    assert clean(text) == text


@given(ANY_TEXT)
def test_any_text_becomes_utf8_and_cleaning_is_idempotent(text: str) -> None:
    cleaned = clean(text)
    assert cleaned.encode().decode() == cleaned
    assert clean(cleaned) == cleaned


@given(ANY_TEXT)
def test_without_options_the_cleaner_is_clean(text: str) -> None:
    assert build_cleaner(make_data())(text) == clean(text)


@pytest.mark.parametrize("text", ["ㅋㅋㅋ ㅠㅠ", "x² ½ ™ ﬁ", "a\u00a0b", "＜|eos|＞"])
def test_nfc_composes_and_keeps_characters_that_nfkc_would_change(text: str) -> None:
    nfc = build_cleaner(make_data(normalize="nfc"))
    assert nfc(unicodedata.normalize("NFD", f"한국어 {text} café")) == f"한국어 {text} café"


def test_masking_comes_last_and_sees_clean_text() -> None:
    cleaner = build_cleaner(make_data(pii="mask"))
    assert cleaner(" 010-1234\x00-5678\r\n\ud83d\ude00 ") == "010-0000-0000\n😀"
    assert build_cleaner(make_data(pii="keep"))("010-1234-5678") == "010-1234-5678"


@given(ANY_TEXT)
def test_with_every_option_cleaning_is_idempotent(text: str) -> None:
    cleaner = build_cleaner(make_data(normalize="nfc", pii="mask"))
    once = cleaner(text)
    assert clean(once) == once
    assert cleaner(once) == once


def test_identity_depends_on_the_options() -> None:
    options: list[dict[str, Any]] = [{}, {"normalize": "nfc"}, {"pii": "mask"}]
    identities = [compute_cleaning_identity(make_data(**option)) for option in options]
    assert all(one != other for index, one in enumerate(identities) for other in identities[:index])
    assert compute_cleaning_identity(make_data(pii="mask"))["pii"] == pii.VERSION


def test_ftfy_repairs_mojibake_and_nothing_else() -> None:
    pytest.importorskip("ftfy")
    cleaner = build_cleaner(make_data(ftfy=True))
    broken = "안녕하세요, “세계”".encode().decode("latin-1")
    assert cleaner(broken) == "안녕하세요, “세계”"
    assert cleaner(f"ㅋㅋㅋ\n{broken}\ud83d\ude00") == "ㅋㅋㅋ\n안녕하세요, “세계”😀"
    for text in (
        "“따옴표” ‘작은’",
        "ﬁ ½ x² ＡＢＣ",
        "ㅋㅋㅋ ㅠㅠ",
        "&amp; &lt;b&gt;",
        "가",
    ):
        assert cleaner(text) == clean(text)
    assert compute_cleaning_identity(make_data(ftfy=True)) != compute_cleaning_identity(make_data())


def test_the_error_for_missing_ftfy_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(UsageError, match=r"pip install .*\[filter\]"):
        build_cleaner(make_data(ftfy=True))
