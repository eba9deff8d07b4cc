"""Distinguishes Korean from English text by its letters."""

from __future__ import annotations

import re
from collections.abc import Sequence

_HANGUL = re.compile(r"[가-힣ㄱ-ㆎ]")
_LATIN = re.compile(r"[A-Za-z]")
MIN_SHARE = 0.05
"""Share of the letters from which on a text contains a language."""


def count_letters(texts: Sequence[str]) -> dict[str, int]:
    """Returns the number of letters of each language, ko and en (any Latin text)."""
    return {
        "ko": sum(len(_HANGUL.findall(text)) for text in texts),
        "en": sum(len(_LATIN.findall(text)) for text in texts),
    }


def find_main_language(texts: Sequence[str]) -> str:
    """Returns the language with the most letters; a Hangul syllable counts as three, as it is worth about as much."""
    counts = count_letters(texts)
    return "ko" if 3 * counts["ko"] > counts["en"] else "en"


def list_languages(texts: Sequence[str]) -> list[str]:
    """Returns the languages that have a share of the letters, the most frequent first."""
    counts = count_letters(texts)
    total = max(1, sum(counts.values()))
    return sorted(
        (name for name in counts if counts[name] / total >= MIN_SHARE), key=lambda name: -counts[name]
    )
