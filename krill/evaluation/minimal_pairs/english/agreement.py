"""Agreement of the verb with its subject."""

from __future__ import annotations

from random import Random

from krill.evaluation.minimal_pairs.english.sentences import choose_theme, contrast, order_forms, write_head
from krill.evaluation.minimal_pairs.english.vocabulary import Noun, Theme, choose_other
from krill.evaluation.minimal_pairs.phenomenon import Pair, Phenomenon


def _draw_simple(random: Random, side: int) -> Pair:
    """Puts the verb next to its subject."""
    theme = choose_theme(random)
    subject = write_head(random, theme, random.choice(theme.nouns), is_plural=bool(side))
    predicate = random.choice(theme.predicates)
    return contrast(subject, *order_forms(side, predicate.third, predicate.base), predicate.rest)


def _draw_across_phrase(random: Random, side: int) -> Pair:
    """Puts a noun of the other number between subject and verb."""
    theme = choose_theme(random)
    noun = random.choice(theme.nouns)
    phrase = random.choice(theme.phrases)
    attractor = choose_other(random, phrase.nouns, noun).inflect(not side)
    subject = f"the {noun.inflect(bool(side))} {phrase.singular} the {attractor}"
    return contrast(subject, *_choose_verb(random, theme, side))


def _draw_across_clause(random: Random, side: int) -> Pair:
    """Puts a relative clause with a noun of the other number between subject and verb."""
    theme = choose_theme(random)
    noun = random.choice(theme.nouns)
    subject = f"the {noun.inflect(bool(side))} {_write_clause(random, theme, noun, side)}"
    return contrast(subject, *_choose_verb(random, theme, side))


def _write_clause(random: Random, theme: Theme, noun: Noun, side: int) -> str:
    """Returns a relative clause whose own noun has the other number."""
    if random.random() < 0.5:
        clause = random.choice(theme.object_clauses)
        inner = choose_other(random, clause.nouns, noun)
        return f"that the {inner.inflect(not side)} {clause.singular if side else clause.plural}"
    clause = random.choice(theme.subject_clauses)
    inner = choose_other(random, clause.nouns, noun)
    verb = clause.plural if side else clause.singular
    pronoun = "who" if theme.relative == "who" else "that"
    return f"{pronoun} {verb} the {inner.inflect(not side)}"


def _choose_verb(random: Random, theme: Theme, side: int) -> tuple[str, str, str]:
    """Chooses a full verb, or be, with what follows it: the right form, the wrong one, the rest."""
    if random.random() < 0.5:
        predicate = random.choice(theme.predicates)
        return *order_forms(side, predicate.third, predicate.base), predicate.rest
    return *order_forms(side, *random.choice(_BE)), random.choice(theme.states)


_BE = (("is", "are"), ("was", "were"))


def choose_auxiliary(random: Random, theme: Theme, experience: str = "{}") -> tuple[str, str, str]:
    """Chooses be, have or do, with what follows it: the singular, the plural, the rest."""
    kind = random.choice(("be", "have", "do"))
    if kind == "be":
        return *random.choice(_BE), random.choice(theme.states)
    if kind == "have":
        return "has", "have", experience.format(random.choice(theme.experiences))
    predicate = random.choice(theme.predicates)
    return "does", "do", f"{predicate.base} {predicate.rest}"


def _draw_auxiliary(random: Random, side: int) -> Pair:
    """Lets be, have or do agree."""
    theme = choose_theme(random)
    subject = write_head(random, theme, random.choice(theme.nouns), is_plural=bool(side))
    singular, plural, rest = choose_auxiliary(random, theme)
    negation = "not" if singular == "does" else ""
    return contrast(subject, *order_forms(side, singular, plural), f"{negation} {rest}".strip())


def _draw_question(random: Random, side: int) -> Pair:
    """Lets be, have or do agree with the subject that follows it."""
    theme = choose_theme(random)
    subject = write_head(random, theme, random.choice(theme.nouns), is_plural=bool(side))
    singular, plural, rest = choose_auxiliary(random, theme, "ever {}")
    opening = "why" if singular != "has" and random.random() < 0.5 else ""
    good, bad = order_forms(side, singular, plural)
    if not opening:
        good, bad = good.capitalize(), bad.capitalize()
    return contrast(opening, good, bad, f"{subject} {rest}", end="?")


AGREEMENT = (
    Phenomenon(
        "agreement_simple",
        "en",
        "A verb in the present agrees with the number of the subject before it.",
        Pair("The function returns a list of names.", "The function return a list of names."),
        2,
        _draw_simple,
    ),
    Phenomenon(
        "agreement_across_phrase",
        "en",
        "A verb agrees with its subject, not with the closer noun of a prepositional phrase, which has the other "
        "number.",
        Pair("The keys in the room belong to my sister.", "The keys in the room belongs to my sister."),
        2,
        _draw_across_phrase,
    ),
    Phenomenon(
        "agreement_across_clause",
        "en",
        "A verb agrees with its subject, not with the noun of a relative clause between them, which has the "
        "other number.",
        Pair(
            "The method that the tests call is deprecated.", "The method that the tests call are deprecated."
        ),
        2,
        _draw_across_clause,
    ),
    Phenomenon(
        "agreement_auxiliary",
        "en",
        "The auxiliaries be, have and do agree with the number of the subject before them.",
        Pair("The doctors have missed a train.", "The doctors has missed a train."),
        2,
        _draw_auxiliary,
    ),
    Phenomenon(
        "agreement_question",
        "en",
        "In a question, the auxiliaries be, have and do agree with the number of the subject after them.",
        Pair("Are the servers busy?", "Is the servers busy?"),
        2,
        _draw_question,
    ),
)
