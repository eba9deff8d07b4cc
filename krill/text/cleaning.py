"""Cleaning: what may change in a text, and nothing else.

1. Surrogates, which no UTF-8 can hold: a pair becomes the character that it stands for, a lone one U+FFFD.
2. On request, mojibake is repaired with ftfy: text that was decoded with the wrong encoding.
3. CR LF and a lone CR become LF (a CR removed would glue two lines together).
4. NUL and the other C0 control characters are removed, except LF and TAB.
5. On request, Unicode NFC. Never NFKC: it destroys Korean jamo, NBSP and x², so that the text could not come back.
6. On request, personal data become placeholders (`krill.text.pii`).
7. White space at both ends is stripped.

`clean(clean(text)) == clean(text)`. A text that needs nothing is passed over twice at the speed of C, without a
regular expression.
"""

from __future__ import annotations

import importlib.metadata
import re
import unicodedata
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

from krill.config.schema import DataConfig
from krill.errors import UsageError
from krill.text import pii

_CONTROL_BYTES = bytes(byte for byte in range(0x20) if chr(byte) not in "\n\t")
_SURROGATES = re.compile("([\ud800-\udbff])([\udc00-\udfff])|[\ud800-\udfff]")


def clean(text: str) -> str:
    """Return `text` as it is stored, by the rules that always hold (1, 3, 4, 7); the result encodes as UTF-8."""
    try:
        content = text.encode()
    except UnicodeEncodeError:
        text = _replace_surrogates(text)
        content = text.encode()
    if len(content.translate(None, _CONTROL_BYTES)) != len(content):
        text = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").translate(None, _CONTROL_BYTES).decode()
    return text.strip()


def build_cleaner(data: DataConfig) -> Callable[[str], str]:
    """The function that does all of the above, as `data` asks. Raises UsageError if ftfy is asked for and missing."""
    asked: list[Callable[[str], str]] = []
    if data.ftfy:
        asked += [_replace_surrogates, _build_mojibake_fixer()]
    asked.append(clean)
    if data.normalize == "nfc":
        asked.append(partial(unicodedata.normalize, "NFC"))
    if data.pii == "mask":
        asked.append(pii.mask_pii)
    return clean if asked == [clean] else partial(_apply_steps, asked)


def compute_cleaning_identity(data: DataConfig) -> dict[str, Any]:
    """JSON that changes whenever `cleaner(data)` might: what is asked for, and by which version it is done."""
    return {
        "normalize": unicodedata.unidata_version if data.normalize == "nfc" else None,
        "ftfy": _get_ftfy_version() if data.ftfy else None,
        "pii": pii.VERSION if data.pii == "mask" else None,
    }


def _apply_steps(steps: list[Callable[[str], str]], text: str) -> str:
    return reduce(lambda changed, step: step(changed), steps, text)


def _replace_surrogates(text: str) -> str:
    return _SURROGATES.sub(_replace_surrogate_match, text)


def _replace_surrogate_match(match: re.Match[str]) -> str:
    high, low = match.groups()
    if high is None:
        return "\ufffd"
    return chr(0x10000 + ((ord(high) - 0xD800) << 10) + (ord(low) - 0xDC00))


def _build_mojibake_fixer() -> Callable[[str], str]:
    """ftfy's repair of wrong decoding, and nothing else of ftfy: quotes, ligatures and widths stay as they are."""
    try:
        from ftfy import TextFixerConfig, fix_text
    except ImportError as error:
        raise _build_missing_ftfy_error() from error
    only_encoding = TextFixerConfig(
        unescape_html=False,
        remove_terminal_escapes=False,
        fix_latin_ligatures=False,
        fix_character_width=False,
        uncurl_quotes=False,
        fix_line_breaks=False,
        fix_surrogates=False,
        remove_control_chars=False,
        normalization=None,
        explain=False,
    )
    return lambda text: text if text.isascii() else fix_text(text, only_encoding)


def _get_ftfy_version() -> str:
    try:
        return importlib.metadata.version("ftfy")
    except importlib.metadata.PackageNotFoundError as error:
        raise _build_missing_ftfy_error() from error


def _build_missing_ftfy_error() -> UsageError:
    return UsageError("data.ftfy=true needs ftfy: pip install 'krill[filter]', or write data.ftfy=false")
