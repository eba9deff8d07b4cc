"""Cleaning: what may change in a text, and nothing else.

1. Surrogates, which no UTF-8 can hold: a pair becomes the character that it stands for, a lone one U+FFFD.
2. CR LF and a lone CR become LF (a CR removed would glue two lines together).
3. NUL and the other C0 control characters are removed, except LF and TAB.
4. White space at both ends is stripped.

Never a normalization: NFKC destroys Korean jamo, NBSP and x², so that the text could not come back as it was.
`clean(clean(text)) == clean(text)`.
"""

from __future__ import annotations

import re

_SURROGATE = re.compile("[\ud800-\udfff]")
_SURROGATES = re.compile("([\ud800-\udbff])([\udc00-\udfff])|[\ud800-\udfff]")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f]")


def clean(text: str) -> str:
    """Return `text` as it is stored, by the rules above; the result encodes as UTF-8."""
    if _SURROGATE.search(text):
        text = _SURROGATES.sub(_repaired, text)
    if _CONTROL.search(text):
        text = _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    return text.strip()


def _repaired(match: re.Match[str]) -> str:
    high, low = match.groups()
    if high is None:
        return "\ufffd"
    return chr(0x10000 + ((ord(high) - 0xD800) << 10) + (ord(low) - 0xDC00))
