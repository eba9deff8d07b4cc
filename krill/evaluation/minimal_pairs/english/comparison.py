"""Comparison of adjectives."""

from __future__ import annotations

from random import Random

from krill.evaluation.minimal_pairs.english.sentences import contrast
from krill.evaluation.minimal_pairs.english.vocabulary import parse_entries, parse_words
from krill.evaluation.minimal_pairs.phenomenon import Pair, Phenomenon

_PEOPLE = (
    parse_words(
        "teacher farmer doctor nurse baker gardener singer painter dancer carpenter tailor waiter pilot "
        "lawyer librarian"
    ),
    parse_entries(
        "tall taller, old older, young younger, strong stronger, kind kinder, rich richer, famous more_famous, "
        "patient more_patient, careful more_careful, popular more_popular, tired more_tired, fast faster, "
        "nervous more_nervous, honest more_honest, short shorter, helpful more_helpful"
    ),
)
_THINGS = (
    parse_words("coat car chair bag hat table lamp bicycle boat clock guitar"),
    parse_entries(
        "big bigger, small smaller, heavy heavier, cheap cheaper, light lighter, nice nicer, "
        "expensive more_expensive, beautiful more_beautiful, useful more_useful, unusual more_unusual"
    ),
)
_SOFTWARE = (
    parse_words("function method parser script program module class test"),
    parse_entries(
        "fast faster, slow slower, short shorter, long longer, small smaller, large larger, useful more_useful, "
        "reliable more_reliable, efficient more_efficient, complicated more_complicated, "
        "flexible more_flexible, important more_important"
    ),
)
_CONTRASTS = (("this", "that"), ("the first", "the second"), ("your", "our"), ("the new", "the old"))


def _draw_comparison(random: Random, side: int) -> Pair:
    """Asks for a comparative (sides 0, 2) or for as and the plain form (sides 1, 3)."""
    nouns, adjectives = random.choice((random.choice((_PEOPLE, _THINGS)), _SOFTWARE))
    plain, comparative = _split_forms(random.choice(adjectives))
    if nouns is _PEOPLE[0] or (nouns is _SOFTWARE[0] and random.random() < 0.3):
        first, second = (f"the {noun}" for noun in random.sample(nouns, 2))
    else:
        one, two = random.choice(_CONTRASTS)
        noun = random.choice(nouns)
        first, second = f"{one} {noun}", f"{two} {noun}" if two == "our" else f"{two} one"
    subject = f"{first} {random.choice(('is', 'was'))}"
    if side == 0:
        return contrast(subject, comparative, plain, f"than {second}")
    if side == 1:
        return contrast(f"{subject} as", plain, comparative, f"as {second}")
    if side == 2:
        return contrast(f"{subject} {comparative}", "than", "as", second)
    return contrast(f"{subject} as {plain}", "as", "than", second)


def _split_forms(entry: str) -> tuple[str, str]:
    plain, comparative = entry.split(" ")
    return plain, comparative.replace("_", " ")


COMPARISON = (
    Phenomenon(
        "comparative",
        "en",
        "Than follows a comparative (faster, more useful), and the plain form of an adjective is between as "
        "and as.",
        Pair("This parser is faster than that one.", "This parser is fast than that one."),
        4,
        _draw_comparison,
    ),
)
