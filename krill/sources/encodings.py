"""Detects the encoding of text that is not UTF-8, for the error message that says how to convert it."""

from __future__ import annotations

import codecs
import shlex
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from krill.sources.formats import parse_file_kind

_PRINTABLE_ASCII = bytes((*range(0x20, 0x7F), *b"\t\r\n"))
SAMPLE_BYTES = 2**16
"""Bytes at the beginning of a file that are examined."""

_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32LE",  # before UTF-16LE, whose mark is its beginning
    codecs.BOM_UTF32_BE: "UTF-32BE",
    codecs.BOM_UTF16_LE: "UTF-16LE",
    codecs.BOM_UTF16_BE: "UTF-16BE",
}
"""Byte order mark → name of the encoding."""
_ESCAPES = {b"\x1b$)C": "ISO-2022-KR", b"\x1b$B": "ISO-2022-JP", b"\x1b$@": "ISO-2022-JP"}
"""Escape sequence → the encoding of mail from before UTF-8, which is ASCII otherwise."""
_MAX_ASCII = 0.75
"""Maximum share of printable ASCII among the bytes of UTF-16: English has 0.5, Chinese about 0.5."""
_MIN_EXPECTED = 0.6
"""Minimum share of expected characters: the bytes of UTF-8 read as UTF-16 have a share near 0."""
_MIN_HANGUL = 0.8
"""Minimum share of common Hangul among the characters of CP949 outside ASCII. Chinese and Japanese encodings that can
be read as CP949 have up to 0.75."""
_ENDINGS, _MIN_ENDINGS = "이다는을의가에고하지은로", 0.05
"""Syllables of Korean particles and endings, and their minimum share in Korean with many Chinese characters or
symbols. It is 0.15 to 0.3 there; in other encodings read as CP949 they hardly occur."""


def detect_encoding(beginning: bytes) -> str | None:
    """Returns the name of the encoding in iconv of the beginning of a text; None for UTF-8 and where it is unknown.

    Detects UTF-16 and UTF-32, with and without a byte order mark, CP949, which includes EUC-KR, and ISO-2022-KR and
    -JP, which consist of ASCII characters.
    """
    sample = beginning[:SAMPLE_BYTES]
    for mark, encoding in _MARKS.items():
        if sample.startswith(mark):
            return encoding
    is_utf8 = find_invalid_utf8(sample) is None
    if b"\0" in sample and _measure_ascii_bytes(sample) <= _MAX_ASCII:
        is_expected = _is_korean_or_english if is_utf8 else _is_east_asian_or_english
        shares = {name: _measure_share(sample, name, is_expected) for name in _MARKS.values()}
        best = max(shares, key=lambda name: shares[name])
        return best if shares[best] >= _MIN_EXPECTED else None
    if is_utf8:
        return next(
            (name for escape, name in _ESCAPES.items() if sample.isascii() and escape in sample), None
        )
    is_korean = (
        _measure_share(sample, "cp949", _is_common_hangul, ascii=False) >= _MIN_HANGUL
        or _measure_share(sample, "cp949", _ENDINGS.__contains__, ascii=False) >= _MIN_ENDINGS
    )
    return "CP949" if is_korean else None


def find_invalid_utf8(beginning: bytes) -> int | None:
    """Returns the index of the first invalid byte; a character that is cut off at the end is valid."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(beginning)
    except UnicodeDecodeError as error:
        return error.start
    return None


def format_conversion(path: Path, encoding: str) -> str:
    """Returns the command line that writes the file as UTF-8 beside itself."""
    compression = parse_file_kind(path)[1]
    kind = "".join(path.suffixes[-2 if compression else -1 :])
    converted = path.with_name(f"{path.name.removesuffix(kind)}.utf8{kind}")
    old, new = shlex.quote(str(path)), shlex.quote(str(converted))
    if compression is None:
        return f"iconv -f {encoding} -t UTF-8 {old} > {new}"
    return f"{compression} -dc {old} | iconv -f {encoding} -t UTF-8 | {compression} > {new}"


def _measure_ascii_bytes(sample: bytes) -> float:
    return 1 - len(sample.translate(None, _PRINTABLE_ASCII)) / len(sample)


def _measure_share(
    sample: bytes, encoding: str, is_expected: Callable[[str], bool], ascii: bool = True
) -> float:
    """Returns the share of expected characters, of all or of those outside ASCII; 0 if it cannot be decoded."""
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(sample)
    except UnicodeDecodeError:
        return 0
    counts = Counter(text if ascii else (character for character in text if character > "\x7f"))
    expected = sum(count for character, count in counts.items() if is_expected(character))
    return expected / max(1, counts.total())


def _is_korean_or_english(character: str) -> bool:
    return " " <= character <= "~" or character in "\t\r\n" or "가" <= character <= "힣"


def _is_east_asian_or_english(character: str) -> bool:
    return _is_korean_or_english(character) or "\u3000" <= character <= "\u9fff"


def _is_common_hangul(character: str) -> bool:
    """Returns whether a character is one of the 2,350 syllables of KS X 1001, nearly all of Korean text."""
    return "가" <= character <= "힣" and len(character.encode("euc-kr", "ignore")) == 2
