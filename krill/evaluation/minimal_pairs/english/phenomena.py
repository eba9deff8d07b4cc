"""The phenomena of the English minimal pairs."""

from __future__ import annotations

from krill.evaluation.minimal_pairs.english.agreement import AGREEMENT
from krill.evaluation.minimal_pairs.english.comparison import COMPARISON
from krill.evaluation.minimal_pairs.english.determiners import DETERMINERS
from krill.evaluation.minimal_pairs.english.modifiers import MODIFIERS
from krill.evaluation.minimal_pairs.english.polarity import POLARITY
from krill.evaluation.minimal_pairs.english.prepositions import PREPOSITIONS
from krill.evaluation.minimal_pairs.english.pronouns import PRONOUNS
from krill.evaluation.minimal_pairs.english.questions import QUESTIONS
from krill.evaluation.minimal_pairs.english.reflexives import REFLEXIVES
from krill.evaluation.minimal_pairs.english.verb_forms import VERB_FORMS
from krill.evaluation.minimal_pairs.phenomenon import Phenomenon

PHENOMENA: tuple[Phenomenon, ...] = (
    *AGREEMENT, *DETERMINERS, *REFLEXIVES, *PRONOUNS, *VERB_FORMS, *PREPOSITIONS, *POLARITY, *QUESTIONS,
    *COMPARISON, *MODIFIERS,
)  # fmt: skip
