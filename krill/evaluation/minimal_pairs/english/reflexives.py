"""Reflexive pronouns and their antecedents: number, gender and person."""

from __future__ import annotations

from random import Random

from krill.evaluation.minimal_pairs.english.sentences import contrast
from krill.evaluation.minimal_pairs.english.vocabulary import parse_entries, parse_lines
from krill.evaluation.minimal_pairs.phenomenon import Pair, Phenomenon

_MEN = parse_entries(
    "man men, boy boys, king kings, waiter waiters, prince princes, monk monks, policeman policemen, "
    "fisherman fishermen, businessman businessmen"
)
_WOMEN = parse_entries(
    "woman women, girl girls, queen queens, waitress waitresses, princess princesses, nun nuns, "
    "actress actresses, lady ladies, businesswoman businesswomen"
)
_HUMAN_ACTS = parse_lines(
    """
    hurt _ in the garden
    introduced _ to the guests
    taught _ to swim
    looked at _ in the mirror
    blamed _ for the accident
    bought _ something to eat
    made _ a cup of tea
    cut _ with a knife
    asked _ why the train was late
    gave _ a day off
    saw _ on television
    enjoyed _ at the party
    found _ a seat near the window
    prepared _ for the journey
    """
)
_MACHINES = parse_entries(
    "program programs, script scripts, service services, application applications, tool tools, plugin plugins, "
    "debugger debuggers"
)
_MACHINE_ACTS = parse_lines(
    """
    restarted _ after an error
    updated _ during the night
    shut _ down after an hour
    stopped _ without a warning
    copied _ to another folder
    closed _ after a few seconds
    added _ to the list of running processes
    removed _ from the list
    installed _ on another computer
    registered _ at startup
    could not restart _ after the update
    sent _ a message
    """
)
_FUNCTIONS = (
    "function functions",
    "method methods",
    "callback callbacks",
    "macro macros",
    "wrapper wrappers",
)
_FUNCTION_ACTS = parse_lines(
    """
    called _ recursively
    called _ again with another argument
    passed _ as the first argument
    returned _ instead of a value
    registered _ as an event handler
    removed _ from the list of callbacks
    replaced _ with a faster version
    can call _ more than once
    must not call _ again
    """
)
_HOUSE_MACHINES = ("oven", "machine", "lamp", "radio", "heater", "alarm clock", "elevator", "dishwasher")
_HOUSE_MACHINE_ACTS = parse_lines(
    """
    turned _ off
    turned _ off after an hour
    switched _ on at night
    turned _ on in the morning
    switched _ off during the storm
    damaged _ because of the heat
    stopped _ after ten minutes
    """
)
_EXPERT_ACTS = parse_lines(
    """
    gave _ access to the server
    added _ to the list of users
    removed _ from the mailing list
    logged _ out of the server
    asked _ why the test had failed
    blamed _ for the delay of the release
    sent _ a copy of the log file
    bought _ a faster computer for the tests
    taught _ to write functions
    signed _ up for the mailing list
    reminded _ to run the tests
    locked _ out of the database
    wrote _ a small script
    made _ responsible for the release
    set _ a deadline for the release
    prepared _ for the code review
    """
)


def _fill(subject: str, act: str, good: str, bad: str) -> Pair:
    before, after = act.split("_")
    return contrast(f"{subject} {before.strip()}", good, bad, after.strip())


def _draw_number(random: Random, side: int) -> Pair:
    """Draws a singular (side 0) or plural (side 1) antecedent."""
    if random.random() < 0.5:
        group, pronoun = random.choice(((_MEN, "himself"), (_WOMEN, "herself")))
        acts, determiner = _HUMAN_ACTS, random.choice(("the", "the young", "the tall"))
    else:
        group, acts = random.choice(((_MACHINES, _MACHINE_ACTS), (_FUNCTIONS, _FUNCTION_ACTS)))
        pronoun, determiner = "itself", random.choice(("the", "the new", "the old", "the other"))
    noun = random.choice(group).split()[side]
    good, bad = ("themselves", pronoun) if side else (pronoun, "themselves")
    return _fill(f"{determiner} {noun}", random.choice(acts), good, bad)


_GENDERED = ("himself", "herself", "itself")
_GENDER_SIDES = tuple((good, bad) for good in _GENDERED for bad in _GENDERED if good != bad)
_HE = parse_entries(
    "he, the man who wrote the parser, the man who fixed the bug, the man who ran the tests, my brother, this man, "
    "my father, the boy"
)
_SHE = parse_entries(
    "she, the woman who wrote the parser, the woman who fixed the bug, the woman who ran the tests, my sister, "
    "this woman, my mother, the girl"
)


def _draw_gender(random: Random, side: int) -> Pair:
    """Draws a good and a bad form among himself, herself and itself."""
    good, bad = _GENDER_SIDES[side]
    is_everyday = random.random() < 0.5
    if good == "itself" and is_everyday:
        subject = f"the {random.choice(('', 'old ', 'new ', 'small '))}{random.choice(_HOUSE_MACHINES)}"
        return _fill(subject, random.choice(_HOUSE_MACHINE_ACTS), good, bad)
    if good == "itself":
        nouns, acts = random.choice(((_MACHINES, _MACHINE_ACTS), (_FUNCTIONS, _FUNCTION_ACTS)))
        subject = f"the {random.choice(('', 'old ', 'new ', 'first '))}{random.choice(nouns).split()[0]}"
        return _fill(subject, random.choice(acts), good, bad)
    if is_everyday:
        noun = random.choice(_MEN if good == "himself" else _WOMEN).split()[0]
        return _fill(
            f"the {random.choice(('', 'young ', 'tall '))}{noun}", random.choice(_HUMAN_ACTS), good, bad
        )
    subject = random.choice(_HE if good == "himself" else _SHE)
    return _fill(subject, random.choice(_EXPERT_ACTS), good, bad)


_PERSONS = {"myself": "I", "yourself": "you", "ourselves": "we", "themselves": "they"}
_OPENINGS = ("", "yesterday ", "last week ", "last night ", "on Monday ", "this morning ", "in the end ")
_PERSON_SIDES = tuple(
    (good, bad)
    for good in _PERSONS
    for bad in _PERSONS
    if good != bad
)  # fmt: skip


def _draw_person(random: Random, side: int) -> Pair:
    """Draws a good and a bad form among those of I, you, we and they."""
    good, bad = _PERSON_SIDES[side]
    act = random.choice(random.choice((_HUMAN_ACTS, _EXPERT_ACTS)))
    return _fill(random.choice(_OPENINGS) + _PERSONS[good], act, good, bad)


REFLEXIVES = (
    Phenomenon(
        "reflexive_number",
        "en",
        "A reflexive pronoun has the number of the subject.",
        Pair("The function called itself recursively.", "The function called themselves recursively."),
        2,
        _draw_number,
    ),
    Phenomenon(
        "reflexive_gender",
        "en",
        "A reflexive pronoun has the gender of the subject: himself, herself or itself.",
        Pair("The queen looked at herself in the mirror.", "The queen looked at himself in the mirror."),
        len(_GENDER_SIDES),
        _draw_gender,
    ),
    Phenomenon(
        "reflexive_person",
        "en",
        "A reflexive pronoun has the person of the subject: I and myself, you and yourself, we and ourselves, "
        "they and themselves.",
        Pair("We gave ourselves access to the server.", "We gave myself access to the server."),
        len(_PERSON_SIDES),
        _draw_person,
    ),
)
