"""Countable and uncountable nouns after much and many."""

from __future__ import annotations

from random import Random

from krill.evaluation.minimal_pairs.english.sentences import contrast, order_forms
from krill.evaluation.minimal_pairs.phenomenon import Pair

_Frames = tuple[tuple[str, str, str], ...]
"""Sentences with "_" before the noun; the nouns after many; the nouns after much; with commas between them."""
_EVERYDAY: _Frames = (
    (
        "The baker bought too _, My mother bought too _ again, We have not bought too _ this week, "
        "How _ did you buy?, The cook did not need very _, How _ did the guests want?, "
        "Nobody needs that _, They did not find _ at the market, The waiter did not bring _, How _ do we need "
        "for the party?, The shop sells too _",
        "apples, eggs, onions, oranges, carrots, tomatoes, potatoes, bananas, plates, spoons, pears, lemons, "
        "peaches, mushrooms",
        "rice, bread, milk, sugar, butter, meat, flour, soup, salt, water, honey, oil, pasta, coffee, tea",
    ),
    (
        "The driver carried too _, We could not see _ in the car, How _ did the workers carry?, "
        "The truck did not carry very _, The man has too _ in his garage, How _ can the donkey carry?, We do "
        "not need that _, There is no room for that _, The boat carried too _, How _ did the shop deliver?",
        "bags, boxes, bottles, chairs, suitcases, stones, books, bricks, baskets, parcels, ladders",
        "luggage, furniture, sand, wood, water, equipment, coal, straw, firewood, hay, gravel",
    ),
    (
        "The students do not have _, My neighbor has too _, How _ does the teacher have?, The nurse never had _, "
        "How _ did the student need?, My sister does not have _, The doctor did not "
        "have that _, He never had very _, Nobody here has too _",
        "books, friends, ideas, problems, questions, pencils, lessons, exams, photos, hobbies",
        "time, money, homework, work, patience, free time, energy, fun, experience, courage",
    ),
)
_TECHNICAL: _Frames = (
    (
        "The program uses too _, The server does not use _, How _ does the script need?, "
        "The test uses too _ on small machines, The new version does not need as _, How _ does the process use?, "
        "The parser never needs very _, The tool uses too _ by default, The server needs too _, How _ did the "
        "test use?, The old version uses too _, Two programs do not need that _, The script does not have _, "
        "How _ does the test need?, The command does not need _",
        "threads, files, processes, variables, modules, ports, sockets, buffers, connections, resources, "
        "registers",
        "memory, space, time, bandwidth, power, storage, energy, disk space, computing power, processor time, "
        "network bandwidth",
    ),
    (
        "The document contains too _, The file does not contain _, How _ does the page contain?, "
        "This section does not have _, The manual has too _, How _ does the tutorial contain?, The tutorial "
        "contains too _, The file has too _, How _ does the manual have?, The old manual does not have _, The "
        "new page has too _",
        "examples, errors, lines, words, tables, comments, links, functions, tests, definitions",
        "text, information, code, detail, whitespace, advice, material, background information, explanatory "
        "text, debug output",
    ),
    (
        "The program prints too _, The script does not print _, How _ does the command print?, "
        "The test produces too _, The server writes too _ to the log, How _ does the tool produce?, The new "
        "version prints too _, The command does not need that _, How _ does the log contain?, The old script "
        "printed too _, The function writes too _, How _ did the tests print?, The compiler does not print _",
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
