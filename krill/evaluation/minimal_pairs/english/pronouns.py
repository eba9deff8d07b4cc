"""Personal and relative pronouns."""

from __future__ import annotations

from random import Random

from krill.evaluation.minimal_pairs.english.everyday import PEOPLE, PEOPLE_ACTIONS, THINGS
from krill.evaluation.minimal_pairs.english.sentences import contrast, order_forms
from krill.evaluation.minimal_pairs.english.technical import (
    CALLABLES,
    EXPERT_ACTIONS,
    EXPERTS,
    PACKAGES,
    PROGRAMS,
)
from krill.evaluation.minimal_pairs.english.vocabulary import parse_lines, parse_words
from krill.evaluation.minimal_pairs.phenomenon import Pair, Phenomenon

_CASES = (("I", "me"), ("he", "him"), ("she", "her"), ("we", "us"), ("they", "them"))
_SAYING = {
    "everyday": (
        "everybody knows that",
        "the teacher said that",
        "the police believe that",
        "the story says that",
        "it is possible that",
        "the children heard that",
    ),
    "technical": (
        "the log shows that",
        "the report says that",
        "the maintainer said that",
        "the history shows that",
        "the administrator knows that",
        "the manual assumes that",
    ),
}
_OBJECT_ENDS = {
    "everyday": parse_lines(
        """
        saw _ yesterday
        helped _ in the garden
        called _ last night
        visited _ in the hospital
        invited _ to the party
        gave _ an apple
        looked at _ for a long time
        waited for _ at the station
        wrote a letter to _
        bought a present for _
        met _ at the market
        drove _ home
        """
    ),
    "technical": parse_lines(
        """
        asked _ for a password
        sent _ an error message
        gave _ access to the files
        added _ to the list of users
        showed _ a list of files
        sent the log file to _
        thanked _ for the patch
        warned _ about the bug
        helped _ with the update
        created an account for _
        explained the code to _
        removed _ from the project
        """
    ),
}
_SENDERS = parse_words("server program script website administrator maintainer developer reviewer tester")
_HUMAN_ONLY = ("thanked", "helped", "explained", "warned")


def _draw_case(random: Random, side: int) -> Pair:
    """Asks for a subject (side 0) or an object (side 1)."""
    forms = order_forms(side, *random.choice(_CASES))
    register = random.choice(("everyday", "technical"))
    if side:
        end = random.choice(_OBJECT_ENDS[register])
        names = _SENDERS if register == "technical" else [noun.singular for noun in PEOPLE.nouns]
        if end.startswith(_HUMAN_ONLY):
            names = names[4:]
        before, after = f"the {random.choice(names)} {end}".split("_")
        return contrast(before.strip(), *forms, after.strip())
    action = random.choice(EXPERT_ACTIONS if register == "technical" else PEOPLE_ACTIONS)
    after = f"{action.verb.past} the {random.choice(action.objects).singular}"
    return contrast(random.choice(_SAYING[register]), *forms, after)


_EITHER = ("child", "server", "client", "compiler", "handler")
"""Nouns that can be of people and of things, or that which followed in older English."""


def _draw_relative(random: Random, side: int) -> Pair:
    """Draws people (side 0) or things (side 1)."""
    if side:
        theme = random.choice((THINGS, random.choice((CALLABLES, PROGRAMS, PACKAGES))))
    else:
        theme = random.choice((PEOPLE, EXPERTS))
    is_plural = random.random() < 0.4
    nouns = [noun for noun in theme.nouns if noun.singular not in _EITHER]
    noun, phrase = random.choice(nouns).inflect(is_plural), random.choice(theme.predicates)
    verb = random.choice(("are", "were") if is_plural else ("is", "was"))
    clause = f"{phrase.base if is_plural else phrase.third} {phrase.rest}"
    after = f"{clause} {verb} {random.choice(theme.states)}"
    return contrast(f"the {noun}", *order_forms(side, "who", "which"), after)


PRONOUNS = (
    Phenomenon(
        "pronoun_case",
        "en",
        "A personal pronoun before its verb has the form of a subject (they), after a verb or a preposition the "
        "form of an object (them).",
        Pair("The server asked them for a password.", "The server asked they for a password."),
        2,
        _draw_case,
    ),
    Phenomenon(
        "relative_who_which",
        "en",
        "The relative pronoun is who after people, which after things.",
        Pair("The tools which read the file are slow.", "The tools who read the file are slow."),
        2,
        _draw_relative,
    ),
)
