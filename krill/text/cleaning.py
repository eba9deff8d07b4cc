"""Text cleaning. These steps, and nothing else, change a text:

1. Surrogates, which UTF-8 cannot encode: a pair becomes the character that it encodes, a lone one U+FFFD.
2. Optional: mojibake (text that was decoded with the wrong encoding) is repaired with ftfy.
3. CR LF and a lone CR become LF (removing a CR would join two lines).
4. NUL and the other C0 control characters are removed, except LF and TAB.
5. Optional: Unicode NFC. Never NFKC: it destroys Korean jamo, NBSP and x², so the text could not be restored.
6. Optional: personal data is replaced by placeholders (`krill.text.pii`).
7. White space at both ends is stripped.

Whether or not step 5 is enabled, the rules that drop a text see it in NFC (`compose`): a syllable of Hangul that is
decomposed into three characters, as on macOS, counts as one.

Cleaning is idempotent. A text that needs no change costs two passes in C and no regular expression.
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
from krill.extras import format_install_command
from krill.text import pii

_CONTROL_BYTES = bytes(byte for byte in range(0x20) if chr(byte) not in "\n\t")
_SURROGATES = re.compile("([\ud800-\udbff])([\udc00-\udfff])|[\ud800-\udfff]")


def clean(text: str) -> str:
    """Returns `text` after the steps that always apply (1, 3, 4, 7); the result encodes as UTF-8."""
    try:
        content = text.encode()
    except UnicodeEncodeError:
        text = _replace_surrogates(text)
        content = text.encode()
    if len(content.translate(None, _CONTROL_BYTES)) != len(content):
        text = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").translate(None, _CONTROL_BYTES).decode()
    return text.strip()


def compose(text: str) -> str:
    """Returns `text` in NFC, the form in which texts are measured and compared; the same object if it is in NFC."""
    if text.isascii():
        return text
    composed = unicodedata.normalize("NFC", text)
    return text if composed == text else composed


def build_cleaner(data: DataConfig) -> Callable[[str], str]:
    """Returns a function that applies the enabled steps. Raises UsageError if ftfy is needed but not installed."""
    steps: list[Callable[[str], str]] = []
    if data.ftfy:
        steps += [_replace_surrogates, _build_mojibake_fixer()]
    steps.append(clean)
    if data.normalize == "nfc":
        steps.append(partial(unicodedata.normalize, "NFC"))
    if data.pii == "mask":
        steps.append(pii.mask_pii)
    return clean if steps == [clean] else partial(_apply_steps, steps)


def compute_cleaning_identity(data: DataConfig) -> dict[str, Any]:
    """Returns JSON that changes whenever cleaning may change: the enabled steps and their versions."""
    return {
        "normalize": unicodedata.unidata_version if data.normalize == "nfc" else None,
        "ftfy": _get_ftfy_version() if data.ftfy else None,
        "pii": pii.VERSION if data.pii == "mask" else None,
    }


def _apply_steps(steps: list[Callable[[str], str]], text: str) -> str:
    return reduce(lambda cleaned, step: step(cleaned), steps, text)


def _replace_surrogates(text: str) -> str:
    return _SURROGATES.sub(_replace_surrogate_match, text)


def _replace_surrogate_match(match: re.Match[str]) -> str:
    high, low = match.groups()
    if high is None:
        return "\ufffd"
    return chr(0x10000 + ((ord(high) - 0xD800) << 10) + (ord(low) - 0xDC00))


def _build_mojibake_fixer() -> Callable[[str], str]:
    """Returns ftfy's repair of wrong decoding alone: quotes, ligatures and widths are left as they are."""
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
    return UsageError(
        f"data.ftfy=true needs ftfy: {format_install_command('filter')}, or set data.ftfy=false"
    )
