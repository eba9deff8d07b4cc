"""Countable and uncountable nouns after much and many."""

from __future__ import annotations

from random import Random

from krill.evaluation.minimal_pairs.english.sentences import contrast, order_forms
from krill.evaluation.minimal_pairs.phenomenon import Pair

Frames = tuple[tuple[str, str, str], ...]
"""Sentences with "_" before the noun; the nouns after many; the nouns after much; with commas between them."""
_EVERYDAY: Frames = (
    (
        "The baker bought too _, My mother bought too _ again, We have not bought too _ this week, "
        "How _ did you buy?, The cook did not need very _, How _ did the guests want?, "
        "Nobody needs that _, They did not find _ at the market",
        "apples, eggs, onions, oranges, carrots, tomatoes, potatoes, bananas, plates, spoons",
        "rice, bread, milk, sugar, butter, meat, flour, soup, salt, water, honey, oil",
    ),
    (
        "The driver carried too _, We could not see _ in the car, How _ did the workers carry?, "
        "The truck did not carry very _, The man has too _ in his garage, How _ can the donkey carry?",
        "bags, boxes, bottles, chairs, suitcases, stones, books, bricks",
        "luggage, furniture, sand, wood, water, equipment, coal, straw",
    ),
    (
        "The students do not have _, My neighbor has too _, How _ does the teacher have?, The nurse never had _, "
        "The children had too _, How _ did the student need?",
        "books, friends, ideas, problems, questions, pencils, lessons, exams",
        "time, money, homework, work, patience, free time, energy, fun",
    ),
)
_TECHNICAL: Frames = (
    (
        "The program uses too _, The server does not use _, How _ does the script need?, "
        "The test uses too _ on small machines, The new version does not need as _, How _ does the process use?, "
        "The parser never needs very _",
        "threads, files, processes, variables, modules, ports, sockets, buffers",
        "memory, space, time, bandwidth, power, storage, energy, disk space",
    ),
    (
        "The document contains too _, The file does not contain _, How _ does the page contain?, "
        "This section does not have _, The manual has too _, How _ does the module contain?",
        "examples, errors, lines, words, tables, comments, links, functions",
        "text, information, documentation, code, detail, whitespace, advice, material",
    ),
    (
        "The program prints too _, The script does not print _, How _ does the command print?, "
        "The test produces too _, The server writes too _ to the log, How _ does the tool produce?, The new version prints too _, We do not need that _, How _ does the log contain?",
        "warnings, messages, lines, errors, numbers, reports, results",
        "output, text, information, useless text, debug information, extra output, useless output",
    ),
)


def draw_quantity(random: Random, side: int) -> Pair:
    """Puts many (side 0) or much (side 1) before a noun."""
    frames = random.choice((_EVERYDAY, _TECHNICAL))
    sentences, *nouns = random.choice(frames)
    sentence = random.choice(sentences.split(", "))
    end = "?" if sentence.endswith("?") else "."
    before, after = sentence.removesuffix("?").split("_")
    noun = random.choice(nouns[side].split(", "))
    return contrast(before.strip(), *order_forms(side, "many", "much"), f"{noun}{after}", end=end)
