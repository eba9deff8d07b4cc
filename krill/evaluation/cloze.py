"""A cloze of held-out text: which word ends a sentence, among words that are as frequent.

The items are made of documents that the model was not trained on: the beginning of a sentence, with what precedes it,
is the context; its last word and three other words of about the same frequency are the choices, so that a unigram
model cannot tell them apart.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from random import Random

from krill.evaluation.task import Item, Task

ITEMS = 300
"""Number of items, if the text has as many."""
CHOICES = 4
"""Number of choices of an item."""
_SEED = 20
CONTEXT_CHARACTERS = 400
"""The maximum length of a context; it begins at a word."""
MIN_CONTEXT_CHARACTERS = 40
"""The minimum length of what precedes a word, so that a model can know it."""
MIN_COUNT = 3
"""How often a word occurs at least, to be a choice."""

_SENTENCE = re.compile(r"(?P<word>[^\W\d_]{2,})(?=[.!?](\s|$))")
_WORD = re.compile(r"[^\W\d_]{2,}")


def build_cloze(name: str, language: str, texts: Sequence[str]) -> Task | None:
    """Returns a task of at most ITEMS items, always the same one for the same texts; None for too little text."""
    counts = Counter(word for text in texts for word in _WORD.findall(text))
    ranked = sorted(
        (word for word, count in counts.items() if count >= MIN_COUNT), key=lambda w: (-counts[w], w)
    )
    positions = {word: index for index, word in enumerate(ranked)}
    random = Random(f"{name} {_SEED}")
    candidates = [
        (text, match)
        for text in texts
        for match in _SENTENCE.finditer(text)
        if match["word"] in positions and match.start() >= MIN_CONTEXT_CHARACTERS
    ]
    items: dict[tuple[str, str], Item] = {}
    for text, match in random.sample(candidates, len(candidates)):
        if len(items) == ITEMS:
            break
        before, word = text[: match.start()], match["word"]
        context = (
            before[-CONTEXT_CHARACTERS:].partition(" ")[2] if len(before) > CONTEXT_CHARACTERS else before
        )
        distractors = _choose_distractors(word, positions[word], ranked, random)
        if len(distractors) < CHOICES - 1 or not context.endswith(" "):
            continue
        choices = [word, *distractors]
        random.shuffle(choices)
        items.setdefault((context, word), Item(context, tuple(choices), choices.index(word)))
    if len(items) < 2:
        return None
    return Task(name, language, "The last word of sentences of held-out text.", tuple(items.values()))


def _choose_distractors(word: str, position: int, ranked: Sequence[str], random: Random) -> list[str]:
    """Returns words that are about as frequent as `word`, of the same script and case."""
    near = ranked[max(0, position - 20) : position + 21]
    similar = [
        other
        for other in near
        if other.lower() != word.lower()
        and other[0].isupper() == word[0].isupper()
        and other.isascii() == word.isascii()
    ]
    return random.sample(similar, min(CHOICES - 1, len(similar)))
