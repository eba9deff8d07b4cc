"""Adjectives and adverbs, and conjunctions in two parts."""

from __future__ import annotations

from random import Random

from krill.evaluation.minimal_pairs.english.everyday import PEOPLE
from krill.evaluation.minimal_pairs.english.sentences import choose_action, contrast, order_forms
from krill.evaluation.minimal_pairs.english.technical import CALLABLES, PROGRAMS
from krill.evaluation.minimal_pairs.english.vocabulary import parse_lines
from krill.evaluation.minimal_pairs.phenomenon import Pair, Phenomenon

_EVERYDAY = parse_lines(
    """
    a careful carefully | plan driver answer worker | opened the box, washed the glasses, crossed the street
    a quick quickly | lunch answer decision walk | closed the window, ate the soup, left the room
    a slow slowly | song train walk reader | opened the door, climbed the stairs, crossed the bridge
    a quiet quietly | street evening voice child | closed the door, left the room, sat down
    a polite politely | answer letter guest voice | asked for help, thanked the nurse, opened the door
    a gentle gently | voice wind smile horse | touched the horse, closed the door, held the bird
    a sudden suddenly | noise storm change stop | opened the window, left the party, began to laugh
    a brave bravely | woman man child decision | fought the fire, crossed the river, climbed the tree
    a nervous nervously | laugh horse student smile | opened the letter, waited for the doctor, looked at the clock
    an angry angrily | letter voice man answer | closed the door, left the room, opened the letter
    a cheerful cheerfully | song voice guest child | opened the door, helped the neighbors, greeted the guests
    a proud proudly | father mother smile owner | showed the picture, wore the hat, carried the flag
    a generous generously | gift neighbor offer friend | paid for dinner, helped the neighbors, shared the bread
    a thoughtful thoughtfully | answer letter gift friend | looked at the picture, closed the book, touched the ring
    """
)
_TECHNICAL = parse_lines(
    """
    an automatic automatically | update backup test check | closes the file, saves the data, starts a new thread
    an explicit explicitly | check name conversion test | closes the file, checks the type, converts the value
    a correct correctly | result value answer format | handles empty lines, parses the file, sorts the list
    a permanent permanently | link change setting solution | stores the value, deletes the file, changes the order
    a silent silently | failure error change conversion | ignores the error, deletes the file, changes the value
    an efficient efficiently | method algorithm search solution | sorts the list, searches the file, uses the memory
    a quick quickly | test check search fix | finds the file, sorts the list, returns the result
    a recursive recursively | function call search method | deletes the folder, copies the files, visits every object
    a direct directly | call link connection way | calls the method, writes to the disk, returns the object
    a frequent frequently | error update change mistake | reads the file, uses the cache, checks the connection
    a random randomly | number value order sample | chooses a port, changes the order, selects a file
    a successful successfully | test update connection build | loads the module, parses the file, opens the socket
    an internal internally | error function class list | uses a list, creates a thread, calls another method
    an accidental accidentally | change error update deletion | deletes the file, changes the value, stops the server
    """
)
_COPULAS = ("that was", "this is", "that is", "it was", "this was")


def _draw_manner(random: Random, side: int) -> Pair:
    """Modifies a verb (side 0) or a noun (side 1)."""
    lines = random.choice((_EVERYDAY, _TECHNICAL))
    forms, nouns, acts = random.choice(lines).split(" | ")
    article, adjective, adverb = forms.split()
    good, bad = order_forms(side, adverb, adjective)
    if side:
        intensifier = random.choice(("", "", "very")) if lines is _EVERYDAY else ""
        before = f"{random.choice(_COPULAS)} {'a' if intensifier else article} {intensifier}".strip()
        return contrast(before, good, bad, random.choice(nouns.split()))
    themes = (PEOPLE,) if lines is _EVERYDAY else (CALLABLES, PROGRAMS)
    return contrast(
        f"the {random.choice(random.choice(themes).nouns).singular}",
        good,
        bad,
        random.choice(acts.split(", ")),
    )


_CONJUNCTION_SIDES = (
    ("either", "or", "and"),
    ("both", "and", "or"),
    ("neither", "nor", "and"),
    ("both", "and", "nor"),
)
_ACCIDENTS = ("lose", "forget", "break", "find")
_MODALS = ("can", "will", "must", "may", "should")


def _draw_conjunction(random: Random, side: int) -> Pair:
    """Draws the conjunction that either, both or neither asks for."""
    opening, good, bad = _CONJUNCTION_SIDES[side]
    while (action := choose_action(random)).verb.base in _ACCIDENTS or len(action.objects) < 2:
        pass
    first, second = (noun.singular for noun in random.sample(action.objects, 2))
    subject = random.choice(action.subjects).singular
    before = f"the {subject} {random.choice(_MODALS)} {action.verb.base} {opening} the {first}"
    return contrast(before, good, bad, f"the {second}")


MODIFIERS = (
    Phenomenon(
        "adjective_adverb",
        "en",
        "An adverb in -ly modifies a verb, an adjective modifies a noun.",
        Pair("The script automatically closes the file.", "The script automatic closes the file."),
        2,
        _draw_manner,
    ),
    Phenomenon(
        "paired_conjunction",
        "en",
        "Either is followed by or, neither by nor, both by and.",
        Pair(
            "The tool can copy both the file and the folder.",
            "The tool can copy both the file or the folder.",
        ),
        len(_CONJUNCTION_SIDES),
        _draw_conjunction,
    ),
)
