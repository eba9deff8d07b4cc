"""Final consonants of Hangul syllables, and the particles that depend on them."""

from __future__ import annotations

_FIRST_SYLLABLE = 0xAC00
_FINALS = 28
_FINAL_NAMES = ("", *"ㄱㄲㄳㄴㄵㄶㄷㄹㄺㄻㄼㄽㄾㄿㅀㅁㅂㅄㅅㅆㅇㅈㅊㅋㅌㅍㅎ")


def get_final_consonant(word: str) -> str:
    """Returns the final consonant of the last syllable, empty if it ends in a vowel."""
    return _FINAL_NAMES[(ord(word[-1]) - _FIRST_SYLLABLE) % _FINALS]


def add_final_consonant(word: str, consonant: str) -> str:
    """Returns `word`, whose last syllable ends in a vowel, with a final consonant."""
    return word[:-1] + chr(ord(word[-1]) + _FINAL_NAMES.index(consonant))


def drop_final_consonant(word: str) -> str:
    """Returns `word` with its last syllable ending in its vowel."""
    return word[:-1] + chr(ord(word[-1]) - _FINAL_NAMES.index(get_final_consonant(word)))


def attach_particle(noun: str, particle: str) -> str:
    """Returns `noun` with the right form of a particle that is written with both: 이/가, 은/는, 을/를, 과/와."""
    after_consonant, after_vowel = particle.split("/")
    return noun + (after_consonant if get_final_consonant(noun) else after_vowel)
