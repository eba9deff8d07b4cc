"""Turns generated tokens into text as soon as the text is final.

A character may be split over tokens (a Hangul syllable has three bytes), a tokenizer's decoder may change what it
wrote before, and a stop text may begin in one token and end in another: what could still change is held back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"
MAX_INCOMPLETE_BYTES = 3
"""Bytes of an incomplete UTF-8 character. A decoder shows them as at most that number of replacement characters."""
CONTEXT_TOKENS = 8
"""The last tokens of the prompt that an answer is decoded with: some decoders drop a space at the start of a text."""


class TextStream:
    """The text of an answer, built token by token.

    `push` and `finish` return text that can be shown; all of it joined is the answer.
    """

    def __init__(
        self, decode: Callable[[list[int]], str], prompt_ids: Sequence[int], stop: Sequence[str] = ()
    ):
        self.text = ""
        """The text that has been returned so far."""
        self.is_stopped = False
        """Whether a stop text has been found; the answer ends before it."""
        self._decode, self._stop = decode, tuple(filter(None, stop))
        self._context = list(prompt_ids[-CONTEXT_TOKENS:])
        self._context_text = decode(self._context)
        self._pending: list[int] = []
        self._pending_text = ""
        """Text of the pending tokens that has been taken from them."""
        self._held_text = ""
        """Final text that may be the start of a stop text."""

    def push(self, token: int) -> str:
        """Adds a token; returns the text that is final now, often empty."""
        self._pending.append(token)
        text = self._decode_pending()
        final = text[: len(text) - _count_trailing_replacements(text)]
        new = final[len(self._pending_text) :]
        if final == text and text:
            self._context, self._context_text = self._pending, self._decode(self._pending)
            self._pending, self._pending_text = [], ""
        else:
            self._pending_text = max(self._pending_text, final, key=len)
        return self._take(new, is_last=False)

    def finish(self, is_cut: bool = False) -> str:
        """Returns the rest of the text.

        `is_cut`: the answer was ended before the model ended it, so that an incomplete character is left out.
        """
        text = self._decode_pending()
        end = len(text) - (_count_trailing_replacements(text) if is_cut else 0)
        return self._take(text[len(self._pending_text) : end], is_last=True)

    def _decode_pending(self) -> str:
        text = self._decode(self._context + self._pending)
        if text.startswith(self._context_text):
            return text[len(self._context_text) :]
        # Byte fallback shows the bytes around an incomplete character as damaged.
        return self._decode(self._pending)

    def _take(self, new: str, is_last: bool) -> str:
        """Returns the part of the held and the new text that is final, up to a stop text."""
        if self.is_stopped:
            return ""
        text = self._held_text + new
        ends = [index for stop in self._stop if (index := text.find(stop)) >= 0]
        if ends:
            self.is_stopped = True
            final = text[: min(ends)]
        else:
            end = len(text) - (0 if is_last else self._count_held(text))
            final, self._held_text = text[:end], text[end:]
        self.text += final
        return final

    def _count_held(self, text: str) -> int:
        """Returns the length of the longest end of `text` with which a stop text begins."""
        longest = max(map(len, self._stop), default=1) - 1
        return next(
            (
                length
                for length in range(min(longest, len(text)), 0, -1)
                if any(stop.startswith(text[-length:]) for stop in self._stop)
            ),
            0,
        )


def _count_trailing_replacements(text: str) -> int:
    """Returns the number of replacement characters at the end of a text that may be one incomplete character."""
    return min(len(text) - len(text.rstrip(REPLACEMENT)), MAX_INCOMPLETE_BYTES)
