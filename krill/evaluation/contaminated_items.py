"""Which items of a task occur in the text that the model was trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from krill.config.signature import compute_signature
from krill.data.contamination import WHOLE_TEXT_TOKENS, find_contaminated_texts
from krill.evaluation.subject import Subject

EDGES = [(before, after) for before in ("", " ") for after in ("", "\n", "\n\n")]
"""What is around a sentence inside of a document: a tokenizer joins it with the first and the last word."""


def find_contaminated_items(texts: Sequence[str], subject: Subject) -> np.ndarray:
    """Returns which of `texts` occur in the training tokens of `subject`; bool (texts,), the same on every rank.

    A short text is looked for at the beginning of a line or after a space, and before a space or a line end. Each
    list of texts is looked for once, however often a training is evaluated.
    """
    key = compute_signature("contaminated items", list(texts))
    if key not in subject.contaminated_items:
        is_contaminated = subject.share.run_on_rank0(lambda: _find_texts(texts, subject))
        subject.contaminated_items[key] = is_contaminated
    return subject.contaminated_items[key]


def describe_contamination(
    is_contaminated: np.ndarray, compute_score: Callable[[np.ndarray], float] | None
) -> dict[str, int | float | str]:
    """Returns the notes of a result: how many items are contaminated, and the scores of these and of the others.

    `is_contaminated`: bool (items,), at least one. `compute_score` gets which items count, bool (items,); None: the
    score is not computed from single items.
    """
    count = int(is_contaminated.sum())
    notes: dict[str, int | float | str] = {
        "contaminated": count,
        "contaminated_share": count / len(is_contaminated),
    }
    if compute_score is not None and 0 < count < len(is_contaminated):
        notes["score_on_contaminated"] = compute_score(is_contaminated)
        notes["score_without_contaminated"] = compute_score(~is_contaminated)
    return notes


def _find_texts(texts: Sequence[str], subject: Subject) -> np.ndarray:
    assert subject.store is not None
    encoded = _encode(texts, subject)
    owners, variants = list(range(len(texts))), list(encoded)
    short = [index for index, tokens in enumerate(encoded) if len(tokens) - 2 <= WHOLE_TEXT_TOKENS]
    for before, after in EDGES[1:]:
        owners += short
        variants += _encode([before + texts[index] + after for index in short], subject)
    is_found = np.zeros(len(texts), bool)
    is_found[np.array(owners)[find_contaminated_texts(subject.store.train, variants)]] = True
    return is_found


def _encode(texts: Sequence[str], subject: Subject) -> list[np.ndarray]:
    """Returns the tokens of each text, with bos and eos."""
    if not texts:
        return []
    encoded = subject.encoder.encode(list(texts))
    return np.split(encoded.tokens, np.cumsum(encoded.lengths)[:-1])
