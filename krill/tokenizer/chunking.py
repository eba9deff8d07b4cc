"""How text is fed to what learns merges: no word without end, so much at once as is worth it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

MAX_RUN_CHARACTERS = 1000
"""Characters. Trainers take quadratic time over a word, and rustbpe's patterns overflow on longer white space."""

ENCODE_BATCH_CHARACTERS = 1_000_000
"""Characters that are encoded at once."""


def chunk_texts(texts: Iterable[str]) -> Iterator[str]:
    """The texts, cut within runs of about `MAX_RUN_CHARACTERS` characters that are all white space or hold none of it.

    Such a run is no text that anyone wrote: a letter a million times, encoded data. What is cut is at most twice as
    long. All other texts pass as they are.
    """
    for text in texts:
        start = 0
        for place in range(0, len(text) - MAX_RUN_CHARACTERS, MAX_RUN_CHARACTERS):
            block = text[place : place + MAX_RUN_CHARACTERS]
            words = block.split(maxsplit=1)
            if not words or len(words[0]) == MAX_RUN_CHARACTERS:
                yield text[start : place + MAX_RUN_CHARACTERS]
                start = place + MAX_RUN_CHARACTERS
        yield text[start:]
