"""The parts of a word list: nouns and verbs with their forms written out, and what can be said of what."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class Noun:
    """A countable noun."""

    article: str
    """a or an."""
    singular: str
    plural: str

    def inflect(self, is_plural: bool) -> str:
        """Returns the form of a number."""
        return self.plural if is_plural else self.singular


@dataclass(frozen=True)
class Verb:
    """A verb with its five forms."""

    base: str
    third: str
    """Third person singular of the present."""
    past: str
    participle: str
    gerund: str


@dataclass(frozen=True)
class VerbPhrase:
    """A verb in the present and what follows it."""

    third: str
    base: str
    rest: str


@dataclass(frozen=True)
class Modifier:
    """A preposition and the nouns that can follow it, or a verb and its possible objects or subjects."""

    singular: str
    """The preposition; or the verb, third person singular."""
    plural: str
    nouns: tuple[Noun, ...]


@dataclass(frozen=True)
class Theme:
    """Nouns of which the same can be said."""

    nouns: tuple[Noun, ...]
    adjectives: tuple[str, ...]
    predicates: tuple[VerbPhrase, ...]
    states: tuple[str, ...]
    """What follows be."""
    experiences: tuple[str, ...]
    """What follows have or has: participles."""
    phrases: tuple[Modifier, ...]
    """Prepositional phrases that follow one of the nouns."""
    object_clauses: tuple[Modifier, ...]
    """Relative clauses in which something is done to one of the nouns."""
    subject_clauses: tuple[Modifier, ...]
    """Relative clauses in which one of the nouns does something."""
    relative: str = "that"
    """The relative pronoun of the subject clauses."""


@dataclass(frozen=True)
class Action:
    """A transitive verb, and who can do it to what."""

    verb: Verb
    subjects: tuple[Noun, ...]
    objects: tuple[Noun, ...]
    is_passive: bool = False
    """Whether a passive is natural, and the verb has no reading without an object in which the subject of the
    passive acts ("the door opens"), nor one with two objects ("he was bought the car")."""
    is_deed: bool = True
    """Whether people or programs do it at some point in time."""


@dataclass(frozen=True)
class Register:
    """The words of a kind of text."""

    name: str
    themes: tuple[Theme, ...]
    actions: tuple[Action, ...]


def parse_nouns(text: str) -> tuple[Noun, ...]:
    """Reads nouns from "a box boxes, an egg eggs"."""
    return tuple(Noun(*entry.split()) for entry in text.split(","))


def index_nouns(text: str) -> dict[str, Noun]:
    """Reads nouns by their singular."""
    return {noun.singular: noun for noun in parse_nouns(text)}


def parse_verb(text: str) -> Verb:
    """Reads a verb from "go goes went gone going"."""
    return Verb(*text.split())


def parse_words(text: str) -> tuple[str, ...]:
    """Reads words with blanks between them."""
    return tuple(text.split())


def parse_entries(text: str) -> tuple[str, ...]:
    """Reads entries with commas between them."""
    return tuple(entry.strip() for entry in text.split(","))


def parse_lines(text: str) -> tuple[str, ...]:
    """Reads one entry from each line that is not empty."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def parse_verb_phrases(text: str) -> tuple[VerbPhrase, ...]:
    """Reads predicates from lines like "lives live | near the river"."""
    predicates = []
    for line in parse_lines(text):
        forms, _, rest = line.partition(" | ")
        third, base = forms.split()
        predicates.append(VerbPhrase(third, base, rest))
    return tuple(predicates)


def parse_modifiers(nouns: dict[str, Noun], text: str) -> tuple[Modifier, ...]:
    """Reads modifiers from lines like "next to | car tree" or "knows / know | teacher doctor"."""
    modifiers = []
    for line in parse_lines(text):
        words, _, objects = line.partition(" | ")
        singular, _, plural = words.partition(" / ")
        modifiers.append(Modifier(singular, plural or singular, pick_nouns(nouns, objects)))
    return tuple(modifiers)


def pick_nouns(nouns: dict[str, Noun], singulars: str) -> tuple[Noun, ...]:
    """Returns the nouns with these singulars, which blanks separate."""
    return tuple(nouns[singular] for singular in singulars.split())


def parse_actions(
    nouns: dict[str, Noun], subjects: tuple[Noun, ...], text: str, is_deed: bool = True
) -> tuple[Action, ...]:
    """Reads actions from lines like "open opens opened opened opening | door gate"; a line that begins with * is
    of a verb whose passive is natural."""
    actions = []
    for line in parse_lines(text):
        forms, _, objects = line.removeprefix("* ").partition(" | ")
        verb, is_passive = parse_verb(forms), line.startswith("*")
        actions.append(Action(verb, subjects, pick_nouns(nouns, objects), is_passive, is_deed))
    return tuple(actions)


def choose_other(random: Random, nouns: tuple[Noun, ...], *others: Noun) -> Noun:
    """Chooses a noun that is not one of the others."""
    return random.choice([noun for noun in nouns if noun not in others])
