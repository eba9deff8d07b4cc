"""The phenomena of the Korean minimal pairs."""

from __future__ import annotations

from krill.evaluation.minimal_pairs.korean.counters import COUNTERS
from krill.evaluation.minimal_pairs.korean.honorifics import HONORIFICS
from krill.evaluation.minimal_pairs.korean.modifier_order import MODIFIER_ORDER
from krill.evaluation.minimal_pairs.korean.negation import NEGATION
from krill.evaluation.minimal_pairs.korean.particle_forms import PARTICLE_FORMS
from krill.evaluation.minimal_pairs.korean.spacing import SPACING
from krill.evaluation.minimal_pairs.korean.tense_aspect import TENSE_AND_ASPECT
from krill.evaluation.minimal_pairs.phenomenon import Phenomenon

PHENOMENA: tuple[Phenomenon, ...] = (
    *PARTICLE_FORMS, *HONORIFICS, *TENSE_AND_ASPECT, *COUNTERS, *NEGATION, *MODIFIER_ORDER, *SPACING,
)  # fmt: skip
