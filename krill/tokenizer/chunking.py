"""Chunks text for BPE trainers, which need words of bounded length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

MAX_RUN_CHARACTERS = 1000
"""Longer runs are cut: trainers take quadratic time in the length of a word, and rustbpe's regular expressions
overflow on long white space."""

ENCODE_BATCH_CHARACTERS = 1_000_000
"""The approximate size of a batch of texts to encode."""


def chunk_texts(texts: Iterable[str]) -> Iterator[str]:
    """Yields the texts, cut within runs of MAX_RUN_CHARACTERS characters or more with only or without white space.

    Such a run is not written language but, for example, a letter a million times, or encoded data. The remaining
    runs are at most twice as long. All other texts are yielded unchanged.
    """
    for text in texts:
        start = 0
        for position in range(0, len(text) - MAX_RUN_CHARACTERS, MAX_RUN_CHARACTERS):
            block = text[position : position + MAX_RUN_CHARACTERS]
            words = block.split(maxsplit=1)
            if not words or len(words[0]) == MAX_RUN_CHARACTERS:
                yield text[start : position + MAX_RUN_CHARACTERS]
                start = position + MAX_RUN_CHARACTERS
        yield text[start:]
