"""Words that need a negation, or the lack of one."""

from __future__ import annotations

from random import Random

from krill.evaluation.minimal_pairs.english.agreement import choose_auxiliary
from krill.evaluation.minimal_pairs.english.sentences import (
    choose_register,
    choose_theme,
    contrast,
    order_forms,
    write_sentence,
)
from krill.evaluation.minimal_pairs.english.vocabulary import choose_other, parse_words
from krill.evaluation.minimal_pairs.phenomenon import Pair, Phenomenon

_EVENTS = {
    "everyday": (
        parse_words("dog cat child student visitor farmer nurse waiter"),
        (
            "left the house",
            "made a noise",
            "came into the kitchen",
            "ran away",
            "slept",
            "caused trouble",
            "got hurt",
        ),
    ),
    "technical": (
        parse_words("server program script tool parser service application"),
        (
            "crashed",
            "failed",
            "lost data",
            "printed a warning",
            "deleted a file",
            "stopped",
            "ignored an error",
            "changed the settings",
        ),
    ),
}
_CONDITIONS = {
    "everyday": (
        (
            parse_words("guests parents neighbors teachers doctors girls boys"),
            ("were asleep", "were away", "were in the room", "were outside", "were at home", "were busy"),
        ),
    ),
    "technical": (
        (
            parse_words("users developers administrators testers"),
            ("were logged in", "were online", "were away"),
        ),
        (parse_words("tests scripts threads processes"), ("were running", "were waiting", "had failed")),
    ),
}
_OPENINGS = ("it seems that", "we know that", "they say that", "everyone knows that", "people believe that")
"""What precedes a negation at the beginning, so that both sentences have it in the same letters."""


def _draw_condition(random: Random, is_first: bool) -> Pair:
    """Negates the subject of ever, or only the clause of when."""
    register = choose_register(random).name
    nouns, events = _EVENTS[register]
    others, states = random.choice(_CONDITIONS[register])
    noun, other = random.choice(nouns), random.choice(others)
    event, state = f"ever {random.choice(events)}", random.choice(states)
    if is_first:
        opening = random.choice(_OPENINGS)
        good, bad = (
            f"{opening} {one} {noun} {event} when {two} {other} {state}"
            for one, two in (("no", "the"), ("the", "no"))
        )
    else:
        good, bad = (
            f"when {two} {other} {state}, {one} {noun} {event}" for one, two in (("no", "the"), ("the", "no"))
        )
    return Pair(write_sentence(good), write_sentence(bad))


def _draw_ever(random: Random, side: int) -> Pair:
    """Puts the negation that ever needs into the first place (side 0) or the second (side 1)."""
    if side or random.random() < 0.4:
        return _draw_condition(random, is_first=not side)
    theme = choose_theme(random)
    noun = random.choice(theme.nouns)
    clause = random.choice(theme.object_clauses)
    inner = choose_other(random, clause.nouns, noun).plural
    opening, rest = random.choice(_OPENINGS), f"has ever {random.choice(theme.experiences)}"
    good, bad = (
        write_sentence(f"{opening} {one} {noun.singular} that {two} {inner} {clause.plural} {rest}")
        for one, two in (("no", "the"), ("the", "no"))
    )
    return Pair(good, bad)


_NEGATIVE = frozenset(("no", "not", "unable", "without", "incomplete"))


def _draw_echo(random: Random, side: int) -> Pair:
    """Continues a positive (side 0) or a negative sentence (side 1)."""
    theme = choose_theme(random)
    noun = random.choice(theme.nouns)
    other = choose_other(random, theme.nouns, noun)
    is_plural = random.random() < 0.4
    while True:
        singular, plural, rest = choose_auxiliary(random, theme)
        if not _NEGATIVE.intersection(rest.split()):
            break
    auxiliary = plural if is_plural else singular
    if side:
        verb = f"{auxiliary} not {rest}"
    elif singular == "does":
        phrase = next(p for p in theme.predicates if f"{p.base} {p.rest}" == rest)
        verb = f"{phrase.base if is_plural else phrase.third} {phrase.rest}"
    else:
        verb = f"{auxiliary} {rest}"
    before = f"the {noun.inflect(is_plural)} {verb}, and"
    return contrast(
        before, *order_forms(side, "so", "neither"), f"{auxiliary} the {other.inflect(is_plural)}"
    )


POLARITY = (
    Phenomenon(
        "negative_polarity",
        "en",
        "Ever needs a negation that precedes it in its own clause or a higher one; a negation inside a relative "
        "clause or a clause with when is not enough. Both sentences have the same words.",
        Pair(
            "We know that no function that the tests call has ever failed.",
            "We know that the function that no tests call has ever failed.",
        ),
        2,
        _draw_ever,
    ),
    Phenomenon(
        "so_neither",
        "en",
        "And so does continues a positive sentence, and neither does a negative one.",
        Pair(
            "The pilot does not like fresh bread, and neither does the nurse.",
            "The pilot does not like fresh bread, and so does the nurse.",
        ),
        2,
        _draw_echo,
    ),
)
