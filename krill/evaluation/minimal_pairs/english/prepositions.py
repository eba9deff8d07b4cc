"""Prepositions that a verb or an adjective asks for."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from krill.evaluation.minimal_pairs.english.everyday import PEOPLE
from krill.evaluation.minimal_pairs.english.sentences import contrast
from krill.evaluation.minimal_pairs.english.technical import CALLABLES, EXPERTS, PACKAGES, PROGRAMS
from krill.evaluation.minimal_pairs.english.vocabulary import parse_lines
from krill.evaluation.minimal_pairs.phenomenon import Pair, Phenomenon

_SUBJECTS = {
    "P": tuple(noun.singular for noun in PEOPLE.nouns),
    "E": tuple(noun.singular for noun in EXPERTS.nouns),
    "V": ("value", "result", "number", "index", "length", "sum", "difference", "offset"),
    "S": tuple(noun.singular for theme in (CALLABLES, PROGRAMS, PACKAGES) for noun in theme.nouns),
}


@dataclass(frozen=True)
class Government:
    """What asks for a preposition."""

    subjects: tuple[str, ...]
    before: str
    preposition: str
    wrong: tuple[str, ...]
    """Prepositions that are certainly wrong there."""
    after: tuple[str, ...]


def _parse(text: str) -> tuple[Government, ...]:
    """Reads lines like "P | relies | on | of to from | her sister, the weather report"."""
    entries = []
    for line in parse_lines(text):
        kind, before, preposition, wrong, after = line.split(" | ")
        entries.append(
            Government(_SUBJECTS[kind], before, preposition, tuple(wrong.split()), tuple(after.split(", ")))
        )
    return tuple(entries)


_EVERYDAY = _parse(
    """
    P | depends | on | of to from | the help of the neighbors, the bus, an old friend
    P | relies | on | of to from | the weather report, an old map, a good friend
    P | insists | on | of to from | a window seat, a clean kitchen, a better answer
    P | concentrated | on | of to | the game, the music, the road
    P | is afraid | of | to from | snakes, the dark, large dogs
    P | is proud | of | on to from | the garden, the new house, the prize
    P | is jealous | of | on from | the neighbors, the young singer, the new student
    P | got rid | of | on to with from in | the old car, the broken chair, the cat
    P | approves | of | on to with from in | the plan, the new bridge, the idea
    P | is fond | of | on to with from in | old films, sweet tea, horses
    P | is tired | of | on to | the rain, the noise, long meetings
    P | listened | to | of | the radio, the birds, an old song
    P | is married | to | of on with from in | a doctor, an actor, a teacher
    P | is allergic | to | of on from in | cats, milk, nuts
    P | is related | to | of on from in | the mayor, the king, a famous painter
    P | objected | to | of from | the plan, the new law, the price
    P | is accustomed | to | of on from in with | hard work, good food, clear rules
    P | paid attention | to | of from | the music, the road, the weather
    P | agrees | with | of from | the doctor, the others, the judge
    P | is satisfied | with | of on from to | the room, the answer, the food
    P | is familiar | with | of on from | the city, the story, the rules
    P | is busy | with | of to from | the dishes, the letters, dinner
    P | recovered | from | of to | the illness, the long journey, the accident
    P | benefited | from | of on to | the new road, the good weather, the advice
    P | suffers | from | on to | headaches, a bad cold, back pain
    P | graduated | from | of on | the university, a small college, the academy
    P | believes | in | of on to with from | ghosts, miracles, magic
    P | is interested | in | of on to with from | music, old maps, birds
    P | took part | in | of on to | the race, the contest, the parade
    P | participated | in | of to from | the race, the contest, the parade
    """
)
_TECHNICAL = _parse(
    """
    S | depends | on | of to from | the operating system, another module, the current settings
    S | relies | on | of to from | the default settings, a recent compiler, a global variable
    S | is based | on | of to | an older version, a simple algorithm, threads
    E | insists | on | of to from | short functions, a code review, better tests
    E | concentrated | on | of to | the tests, the parser, the documentation
    S | consists | of | on to with from | three files, several functions, a single class
    S | makes use | of | on to with from in | threads, a global variable, the cache
    S | takes care | of | to from | the details, the connection, the memory
    S | keeps track | of | on to from | the changes, all open files, the errors
    S | is composed | of | on to | several parts, two classes, small functions
    E | is aware | of | on to with from in | the bug, the problem, the new version
    E | got rid | of | on to with from in | the old code, the global variables, the warning
    S | refers | to | of with | an object, the parent class, another file
    V | is equal | to | of on from in with | zero, ten, one, minus one
    E | is accustomed | to | of on from in with | hard work, criticism, clear rules
    S | is similar | to | of from with | the old one, the first one, a class
    S | responds | to | of from | every request, the signal, the message
    S | leads | to | of with | an error, better results, problems
    E | objected | to | of from | the change, the new name, the patch
    S | is identical | to | of from | the old one, the first one, the original
    S | is compatible | with | of from | older versions, all platforms, the new format
    S | interferes | with | of from to | other programs, the debugger, the tests
    S | complies | with | of on from | the standard, the new rules, the specification
    S | is consistent | with | of from to | the documentation, the standard, the other tools
    E | is familiar | with | of on from | the code, the interface, the debugger
    E | is satisfied | with | of on from to | the results, the tests, the new version
    S | is separate | from | of on | the main program, the other files, the tests
    S | is derived | from | of on to | an older version, another project, a shorter one
    S | benefits | from | of on to | the cache, faster disks, the new compiler
    S | suffers | from | to | memory leaks, slow disks, a bug
    S | recovers | from | of to | errors, a lost connection, a crash
    S | is different | from | of | the old one, the first one, all others
    S | resulted | in | of on to | an error, faster tests, a crash
    E | is interested | in | of on to with from | the results, the new parser, compilers
    E | participates | in | of to from | the project, the review, the discussion
    E | believes | in | of on to with from | short functions, good tests, clear names
    """
)
_PAIRS = (
    ("of", "on"), ("of", "to"), ("of", "with"), ("of", "from"), ("of", "in"),
    ("on", "to"), ("on", "from"), ("to", "with"), ("to", "from"), ("to", "in"),
)  # fmt: skip
_SIDES = _PAIRS + tuple((bad, good) for good, bad in _PAIRS)


def _draw_preposition(random: Random, side: int) -> Pair:
    """Draws what asks for the first preposition of a side, and not for the second."""
    good, bad = _SIDES[side]
    entries = random.choice((_EVERYDAY, _TECHNICAL))
    entry = random.choice([entry for entry in entries if entry.preposition == good and bad in entry.wrong])
    before = f"the {random.choice(entry.subjects)} {entry.before}"
    return contrast(before, good, bad, random.choice(entry.after))


PREPOSITIONS = (
    Phenomenon(
        "governed_preposition",
        "en",
        "A verb or an adjective fixes its preposition: depend on, consist of, refer to, comply with, recover "
        "from, believe in.",
        Pair("The module depends on the current settings.", "The module depends of the current settings."),
        len(_SIDES),
        _draw_preposition,
    ),
)
