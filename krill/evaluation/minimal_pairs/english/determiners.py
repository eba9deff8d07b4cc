"""Determiners and the nouns after them: number, countability, and the sound after a and an."""

from __future__ import annotations

from random import Random

from krill.evaluation.minimal_pairs.english.articles import draw_article
from krill.evaluation.minimal_pairs.english.quantities import draw_quantity
from krill.evaluation.minimal_pairs.english.sentences import choose_action, contrast, order_forms
from krill.evaluation.minimal_pairs.english.vocabulary import parse_words
from krill.evaluation.minimal_pairs.phenomenon import Pair, Phenomenon

_SINGULAR = ("this", "each", "every", "one", "another")
_PLURAL = ("these", "those", "several", "many", "two", "three", "both", "a few")
_ADJECTIVES = ("new", "old", "large", "small")
_NOT_EACH = parse_words(
    "choose ride drive wear buy sell lose find forget throw use raise sing create write draw"
)
"""Verbs with which each and every are rare."""
_PLAIN = parse_words(
    "bird match game song rose exception error event value argument element key request warning bug result mistake "
    "name port expression number connection tool stone process"
)
"""Nouns that the adjectives do not fit."""


def _draw_determiner(random: Random, side: int) -> Pair:
    action = choose_action(random)
    subject, noun = random.choice(action.subjects), random.choice(action.objects)
    determiner = random.choice(_PLURAL if side else _SINGULAR)
    if determiner in ("each", "every") and action.verb.base in _NOT_EACH:
        determiner = "this"
    adjective = random.choice(_ADJECTIVES) if random.random() < 0.4 and noun.singular not in _PLAIN else ""
    before = f"the {subject.singular} {action.verb.past} {determiner} {adjective}".strip()
    return contrast(before, *order_forms(side, noun.singular, noun.plural), "")


DETERMINERS = (
    Phenomenon(
        "determiner_noun",
        "en",
        "After this, each, every, one and another a noun is singular, after these, those, several, many, both "
        "and numbers it is plural.",
        Pair("The user closed these old files.", "The user closed these old file."),
        2,
        _draw_determiner,
    ),
    Phenomenon(
        "article_a_an",
        "en",
        "The indefinite article is an before a vowel sound and a before a consonant sound, whatever the letter.",
        Pair("This method returns an unused value.", "This method returns a unused value."),
        2,
        draw_article,
    ),
    Phenomenon(
        "many_much",
        "en",
        "Many goes before countable nouns in the plural, much before uncountable nouns.",
        Pair("The program uses too much memory.", "The program uses too many memory."),
        2,
        draw_quantity,
    ),
)
