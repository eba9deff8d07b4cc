"""Conjugates verbs and adjectives from two written-out forms, so that every irregular stem is in a word list."""

from __future__ import annotations

from dataclasses import dataclass

from krill.evaluation.minimal_pairs.korean.hangul import (
    add_final_consonant,
    drop_final_consonant,
    get_final_consonant,
)

_OPENED_FINALS = {"ㅂ": ("", "우"), "ㄷ": ("ㄹ", "으"), "ㅅ": ("", "으")}
"""How an irregular stem with this final consonant changes before a vowel: the consonant then, and what follows."""


@dataclass(frozen=True)
class Predicate:
    """A verb or an adjective with what comes before it, such as its object: 책을 읽다/읽어."""

    phrase: str
    """What comes before the stem, with the space that follows it."""
    stem: str
    """읽"""
    infinitive: str
    """The form in -아 or -어: 읽어"""

    @property
    def bare(self) -> str:
        return self.phrase + self.stem

    @property
    def connected(self) -> str:
        return self.phrase + self.infinitive

    @property
    def past(self) -> str:
        """책을 읽었"""
        return self.phrase + self.past_stem

    @property
    def past_stem(self) -> str:
        return add_final_consonant(self.infinitive, "ㅆ")

    @property
    def open_stem(self) -> str:
        """The stem before endings that begin with 으 after a consonant: 읽으, 가, 만드, 도우, 들으."""
        final = get_final_consonant(self.stem)
        if not final:
            return self.stem
        if final == "ㄹ":
            return drop_final_consonant(self.stem)
        if final in _OPENED_FINALS and not self.infinitive.startswith(self.stem):
            new_final, vowel = _OPENED_FINALS[final]
            opened = drop_final_consonant(self.stem)
            return (add_final_consonant(opened, new_final) if new_final else opened) + vowel
        return self.stem + "으"

    @property
    def future(self) -> str:
        """The adnominal form in -(으)ㄹ: 책을 읽을"""
        return self.phrase + add_final_consonant(self.open_stem, "ㄹ")

    @property
    def past_adnominal(self) -> str:
        """The adnominal form in -(으)ㄴ, which is the present of an adjective: 책을 읽은, 좋은"""
        return self.phrase + add_final_consonant(self.open_stem, "ㄴ")

    @property
    def honorific_past(self) -> str:
        """책을 읽으셨"""
        return self.phrase + self.open_stem + "셨"


def parse_predicates(lines: str) -> tuple[Predicate, ...]:
    """Reads predicates, one a line: 책을 읽다/읽어."""
    return tuple(_parse_predicate(line.strip()) for line in lines.strip().splitlines())


def _parse_predicate(line: str) -> Predicate:
    words, infinitive = line.split("/")
    phrase, space, verb = words.rpartition(" ")
    return Predicate(phrase + space, verb.removesuffix("다"), infinitive)
