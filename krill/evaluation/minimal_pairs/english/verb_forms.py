"""Forms of verbs: after auxiliaries, irregular ones, and the tense that a time asks for."""

from __future__ import annotations

from random import Random

from krill.evaluation.minimal_pairs.english.everyday import PEOPLE_ACTIONS
from krill.evaluation.minimal_pairs.english.irregular import draw_irregular
from krill.evaluation.minimal_pairs.english.sentences import (
    choose_action,
    choose_deed,
    choose_register,
    contrast,
    order_forms,
)
from krill.evaluation.minimal_pairs.english.technical import EXPERT_ACTIONS, PROGRAM_ACTIONS
from krill.evaluation.minimal_pairs.english.vocabulary import parse_words
from krill.evaluation.minimal_pairs.phenomenon import Pair, Phenomenon

_BEFORE = {
    "base": ("can", "will", "must", "should", "may", "does not", "did not"),
    "third": ("often", "always", "sometimes", "never", "usually"),
    "gerund": ("is", "was", "is not", "was not"),
    "participle": ("has", "had", "has not", "has already"),
}
_FORM_SIDES = tuple(
    (good, bad)
    for good in _BEFORE
    for bad in _BEFORE
    if good != bad and {good, bad} != {"third", "participle"}  # "often opened" is right as well
)
_AMBIGUOUS = ("open", "close", "clean", "find")
"""Verbs with a form that has another meaning: "is open", "must found"."""


def _draw_form(random: Random, side: int) -> Pair:
    """Draws the form that an auxiliary or an adverb asks for, and another one."""
    good, bad = _FORM_SIDES[side]
    needs_passive = {good, bad} == {
        "gerund",
        "participle",
    }  # "was bought the hat" is a passive with two objects
    while True:
        action = choose_action(random)
        if action.verb.base not in _AMBIGUOUS and (action.is_passive or not needs_passive):
            break
    before = f"the {random.choice(action.subjects).singular} {random.choice(_BEFORE[good])}"
    forms = getattr(action.verb, good), getattr(action.verb, bad)
    return contrast(before, *forms, f"the {random.choice(action.objects).singular}")


_PAST = ("yesterday", "last week", "last month", "last Monday", "two days ago", "a week ago")
_FUTURE = ("tomorrow", "next week", "next month", "next Monday", "the day after tomorrow")


def _draw_tense(random: Random, side: int) -> Pair:
    """Asks for the past (side 0) or the future (side 1)."""
    action = random.choice(random.choice((PEOPLE_ACTIONS, EXPERT_ACTIONS)))
    subject = f"the {random.choice(action.subjects).singular}"
    rest = f"the {random.choice(action.objects).singular}"
    forms = order_forms(side, action.verb.past, f"will {action.verb.base}")
    time = random.choice(_FUTURE if side else _PAST)
    if random.random() < 0.5:
        return contrast(f"{time} {subject}", *forms, rest)
    return contrast(subject, *forms, f"{rest} {time}")


_TO = {
    "people": ("wants", "hopes", "decided", "promised", "agreed", "refused"),
    "programs": ("seems", "tends", "refused"),
}
_ING = {"people": ("avoided", "considered", "denied", "admitted"), "programs": ("avoided", "kept")}
_DURATIVE = parse_words(
    "wash clean paint repair draw write build edit test rewrite copy document parse convert check validate"
)


def _draw_complement(random: Random, side: int) -> Pair:
    """Asks for an infinitive (side 0) or for the form in -ing (side 1)."""
    action = choose_deed(random)
    kind = "programs" if action in PROGRAM_ACTIONS else "people"
    verbs = _ING[kind] + ("finished",) * 2 * (action.verb.base in _DURATIVE) if side else _TO[kind]
    before = f"the {random.choice(action.subjects).singular} {random.choice(verbs)}"
    forms = order_forms(side, f"to {action.verb.base}", action.verb.gerund)
    return contrast(before, *forms, f"the {random.choice(action.objects).singular}")


_MODALS = ("will", "must", "can", "should", "may")


def _draw_passive(random: Random, side: int) -> Pair:
    """Draws a passive (side 0) or an active sentence (side 1)."""
    action = random.choice([action for action in choose_register(random).actions if action.is_passive])
    agent = f"the {random.choice(action.subjects).singular}"
    patient = f"the {random.choice(action.objects).singular}"
    forms = order_forms(side, f"be {action.verb.participle}", action.verb.base)
    modal = random.choice(_MODALS)
    if side:
        return contrast(f"{agent} {modal}", *forms, patient)
    return contrast(f"{patient} {modal}", *forms, f"by {agent}")


VERB_FORMS = (
    Phenomenon(
        "auxiliary_verb_form",
        "en",
        "A modal or do is followed by the base form, have by the participle, be by the form in -ing; after an "
        "adverb alone the verb agrees with its subject.",
        Pair("The user has deleted the file.", "The user has deleting the file."),
        len(_FORM_SIDES),
        _draw_form,
    ),
    Phenomenon(
        "irregular_participle",
        "en",
        "After have an irregular verb has the form of the participle, without it the form of the past.",
        Pair("The baker has broken a cup.", "The baker has broke a cup."),
        2,
        draw_irregular,
    ),
    Phenomenon(
        "tense_time",
        "en",
        "A time in the past asks for a verb in the past, a time in the future for will.",
        Pair("The tester renamed the file yesterday.", "The tester will rename the file yesterday."),
        2,
        _draw_tense,
    ),
    Phenomenon(
        "verb_complement",
        "en",
        "Some verbs, such as decide, are followed by an infinitive with to, others, such as avoid, "
        "by the form in -ing.",
        Pair("The developer avoided deleting the file.", "The developer avoided to delete the file."),
        2,
        _draw_complement,
    ),
    Phenomenon(
        "passive",
        "en",
        "A passive with be and a participle has its agent after by, an active verb has an object.",
        Pair("The class can be imported by the user.", "The class can import by the user."),
        2,
        _draw_passive,
    ),
)
