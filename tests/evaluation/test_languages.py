"""The languages of a text, which choose the tasks."""

from __future__ import annotations

import pytest

from krill.evaluation.languages import find_main_language, list_languages

KOREAN, ENGLISH = "한국어 문장은 조사와 어미가 자주 되풀이된다. ", "Text is made of words that come again. "


@pytest.mark.parametrize(
    ("texts", "languages"),
    [
        ([ENGLISH], ["en"]),
        ([KOREAN], ["ko"]),
        ([ENGLISH, KOREAN], ["en", "ko"]),
        ([ENGLISH * 99, KOREAN], ["en"]),
        (["123"], []),
        ([], []),
    ],
)
def test_languages_with_a_share_of_the_letters_are_listed(texts: list[str], languages: list[str]) -> None:
    assert sorted(list_languages(texts)) == languages


def test_a_text_in_which_korean_carries_more_than_english_is_korean() -> None:
    assert find_main_language([KOREAN, "print(text)"]) == "ko"
    assert find_main_language([ENGLISH, "조사"]) == "en"
