"""Words that follow a or an."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from krill.evaluation.minimal_pairs.english.sentences import contrast
from krill.evaluation.minimal_pairs.english.vocabulary import parse_entries
from krill.evaluation.minimal_pairs.phenomenon import Pair


@dataclass(frozen=True)
class ArticleFrame:
    """Sentences with an indefinite noun phrase, and its possible words by their article."""

    openings: tuple[str, ...]
    adjectives: tuple[tuple[str, ...], tuple[str, ...]]
    """After an, after a."""
    nouns: tuple[tuple[str, ...], tuple[str, ...]]
    """After an, after a."""
    endings: tuple[str, ...] = ("",)


def _split(an: str, a: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Reads two lists of words, with commas between them."""
    return parse_entries(an), parse_entries(a)


_PEOPLE = ("The teacher", "The doctor", "My sister", "Our neighbor", "The girl", "My uncle", "The farmer")
_EVERYDAY = (
    ArticleFrame(
        tuple(f"{subject} {verb}" for subject in _PEOPLE for verb in ("bought", "wanted", "found")),
        _split(
            "old, expensive, unusual, ugly, elegant, orange, Italian, empty, enormous, interesting",
            "new, small, beautiful, cheap, large, useful, unique, used, European, white, wonderful, yellow",
        ),
        _split(
            "umbrella, armchair, oven, instrument, oil lamp, iron box, ink bottle",
            "hat, table, lamp, guitar, uniform, bicycle, violin, watch, house, unicycle, yacht",
        ),
        ("", "last week", "yesterday"),
    ),
    ArticleFrame(
        tuple(f"{subject} met" for subject in _PEOPLE),
        _split(
            "old, honest, unusual, unhappy, angry, elderly, interesting, American, English, Irish",
            "young, tall, famous, friendly, Ukrainian, European, strange, Korean, wise, hungry",
        ),
        _split(
            "actor, engineer, artist, officer, astronaut, heiress, author, athlete, orphan",
            "singer, painter, lawyer, university student, widow, hunter, doctor, one-eyed man, yoga teacher",
        ),
        ("", "on the train", "at the market", "yesterday"),
    ),
    ArticleFrame(
        tuple(f"{subject} ate" for subject in _PEOPLE),
        _split(
            "old, Italian, enormous, unripe, unusual",
            "big, small, fresh, whole, huge, sweet, European, yellow",
        ),
        _split(
            "apple, egg, orange, onion, apricot, olive",
            "banana, pear, tomato, carrot, peach, waffle, yam, plum",
        ),
        ("", "for breakfast", "after school"),
    ),
    ArticleFrame(
        tuple(f"{subject} {verb} for" for subject in _PEOPLE for verb in ("waited", "worked", "stayed")),
        _split("entire, extra, additional", "whole, full, further"),
        _split("hour", "week, day, year, month, weekend"),
        ("", "in the village", "without a break"),
    ),
)
_TECHNICAL = (
    ArticleFrame(
        tuple(
            f"{subject} {verb}"
            for subject in ("The function", "This method", "The callback", "The parser", "The second call")
            for verb in ("returns", "creates", "expects")
        ),
        _split(
            "additional, extra, unused, optional, internal, external, invalid, unknown, ordinary, unusual",
            "new, valid, hidden, simple, unique, usable, second, different, temporary, local, user-defined",
        ),
        _split(
            "argument, array, object, index, element, attribute, integer, iterator, operator, event, address, "
            "expression, instance, image, item, XML file, IP address, API key",
            "list, function, string, class, module, value, key, token, dictionary, file, tuple, union, unit, "
            "UUID, user name, header, hash, byte, Unicode string, UTF-8 string, USB port, message",
        ),
        ("", "in this case", "by default", "in this example"),
    ),
    ArticleFrame(
        tuple(
            f"{subject} {verb}"
            for subject in ("The user", "The developer", "This command", "The script", "The administrator")
            for verb in ("needs", "opened", "used")
        ),
        _split(
            "old, external, official, outdated, additional, unknown, unusual, extra",
            "new, local, hidden, private, useful, simple, second, usable, different",
        ),
        _split(
            "editor, account, archive, interface, extension, application, index, image, XML file, SSH key, e-book",
            "folder, project, script, database, utility, user account, web page, hard disk, JSON file, unit test",
        ),
        ("", "during the test", "before the update", "for this task"),
    ),
)


def draw_article(random: Random, side: int) -> Pair:
    """Puts an (side 0) or a (side 1) before an adjective or a noun."""
    frame = random.choice(random.choice((_EVERYDAY, _TECHNICAL)))
    if random.random() < 0.6:
        phrase = f"{random.choice(frame.adjectives[side])} {random.choice(random.choice(frame.nouns))}"
    else:
        phrase = random.choice(frame.nouns[side])
    good, bad = ("a", "an") if side else ("an", "a")
    return contrast(
        random.choice(frame.openings), good, bad, f"{phrase} {random.choice(frame.endings)}".strip()
    )
