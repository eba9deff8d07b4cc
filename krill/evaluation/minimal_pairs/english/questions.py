"""Questions: the gap that a question word leaves, and the order of words in embedded questions."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from krill.evaluation.minimal_pairs.english.everyday import EVERYDAY_NOUNS, PEOPLE
from krill.evaluation.minimal_pairs.english.sentences import choose_register, contrast, order_forms
from krill.evaluation.minimal_pairs.english.technical import EXPERTS, PROGRAMS, TECHNICAL_NOUNS
from krill.evaluation.minimal_pairs.english.vocabulary import Noun, Theme, pick_nouns
from krill.evaluation.minimal_pairs.phenomenon import Pair, Phenomenon


@dataclass(frozen=True)
class GapFrame:
    """Verbs that are never without an object, with their possible subjects, objects and ends."""

    subjects: tuple[Noun, ...]
    verbs: tuple[str, ...]
    objects: tuple[Noun, ...]
    auxiliaries: tuple[str, ...]
    ends: tuple[str, ...]


_GAPS = {
    "everyday": (
        GapFrame(
            PEOPLE.nouns,
            (
                "recognize",
                "ignore",
                "find",
                "like",
                "repair",
                "mention",
                "admire",
                "describe",
                "discover",
                "need",
                "damage",
            ),
            pick_nouns(EVERYDAY_NOUNS, "bag box book lamp chair key umbrella clock basket"),
            ("did",),
            ("", "after the party", "at the market", "on Sunday", "at the hotel", "in the morning"),
        ),
    ),
    "technical": (
        GapFrame(
            EXPERTS.nouns,
            (
                "need",
                "find",
                "mention",
                "replace",
                "fix",
                "define",
                "rename",
                "describe",
                "overlook",
                "recognize",
            ),
            pick_nouns(TECHNICAL_NOUNS, "file function module tool script class option parameter"),
            ("did",),
            ("", "in the second step", "on Monday", "during the test", "before the release"),
        ),
        GapFrame(
            PROGRAMS.nouns,
            ("need", "use", "contain", "require", "replace", "provide", "modify", "include"),
            pick_nouns(TECHNICAL_NOUNS, "file function module table list option"),
            ("does",),
            ("", "in this example", "by default", "in this version", "on other platforms"),
        ),
    ),
}


def _draw_gap(random: Random, side: int) -> Pair:
    """Asks a question with what or which (side 0), or a question for yes or no (side 1)."""
    frame = random.choice(_GAPS[choose_register(random).name])
    subject, verb = random.choice(frame.subjects).singular, random.choice(frame.verbs)
    auxiliary, end = random.choice(frame.auxiliaries), random.choice(frame.ends)
    if side:
        return contrast(f"{auxiliary} the {subject} {verb}", "it", "", end, end="?")
    word = random.choice(("what", f"which {random.choice(frame.objects).singular}"))
    return contrast(f"{word} {auxiliary} the {subject} {verb}", "", "it", end, end="?")


_EMBEDDING = {
    "everyday": (
        "I know",
        "nobody knows",
        "my sister knows",
        "she understands",
        "I remember",
        "he explained",
    ),
    "technical": (
        "the manual explains",
        "this section explains",
        "the documentation explains",
        "nobody knows",
        "the log shows",
        "this example shows",
        "we understand",
        "the report explains",
    ),
}


def _draw_embedded(random: Random, side: int) -> Pair:
    """Embeds a question (side 0) or asks it (side 1)."""
    register = choose_register(random)
    theme = random.choice(register.themes)
    is_plural = random.random() < 0.4
    subject = f"the {random.choice(theme.nouns).inflect(is_plural)}"
    statement, question, rest = _choose_order(random, theme, subject, is_plural)
    before = "" if side else random.choice(_EMBEDDING[register.name])
    return contrast(
        f"{before} why".strip(), *order_forms(side, statement, question), rest, end="?" if side else "."
    )


def _choose_order(random: Random, theme: Theme, subject: str, is_plural: bool) -> tuple[str, str, str]:
    """Chooses a clause: its words before what the orders share as a statement, as a question, and what they share."""
    if random.random() < 0.5:
        verb = random.choice(("are", "were") if is_plural else ("is", "was"))
        return f"{subject} {verb}", f"{verb} {subject}", random.choice(theme.states)
    phrase = random.choice(theme.predicates)
    if is_plural:
        return f"{subject} {phrase.base}", f"do {subject} {phrase.base}", phrase.rest
    return f"{subject} {phrase.third}", f"does {subject} {phrase.base}", phrase.rest


QUESTIONS = (
    Phenomenon(
        "wh_gap",
        "en",
        "A question with what or which leaves the object of the verb empty; in a question for yes or no the verb "
        "needs its object.",
        Pair("What does the script need?", "What does the script need it?"),
        2,
        _draw_gap,
    ),
    Phenomenon(
        "embedded_question",
        "en",
        "An embedded question has the order of a statement, a direct question has an auxiliary before its subject.",
        Pair("The manual explains why the server is slow.", "The manual explains why is the server slow."),
        2,
        _draw_embedded,
    ),
)
