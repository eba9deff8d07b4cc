"""Masks personal data: replaces e-mail and IP addresses, phone, resident and card numbers by placeholders.

| kind | matches | placeholder |
|---|---|---|
| e-mail | all but git@ | email@example.com |
| phone | Korean: 010-1234-5678, 01012345678, 010)1234-5678, 02-123-4567, (031) 123-4567 | 010-0000-0000 |
| | +82 10 1234 5678, 82-10-1234-5678 | |
| resident number | 900101-1234567: a date, a hyphen, then a digit from 1 to 8 | 000000-0000000 |
| card | 16 digits in groups of four by hyphens or spaces, with a valid check digit (Luhn) | 0000-0000-0000-0000 |
| IPv4 | public, with at least eight digits, three of them in one group: 1.2.3.4 is more often | 192.0.2.1 |
| | a version than an address, 23.10.15.13 a date with the hour | |
| IPv6 | public (2000::/3) | 2001:db8::1 |

In a number, dashes, full-width characters, middle dots and unusual spaces (010–1234–5678, as word processors write
it) are read as hyphens, digits, dots and spaces, and a hyphen may have spaces around it.

Not masked, because too many other numbers look alike: resident numbers without the hyphen, landlines without a
separator, service numbers (1588-0000), bank accounts. FineWeb (Penedo et al. 2024) masks e-mail and IPv4 likewise.

Masking is idempotent: a placeholder matches no kind but its own.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import NamedTuple

VERSION = 3
"""Part of the identity of masked text; incremented when the masked text changes."""

Placeholder = str | Callable[[re.Match[str]], str]


def mask_pii(text: str) -> str:
    """Returns `text` with personal data replaced by placeholders."""
    if "@" in text or "＠" in text:
        text = _mask_emails(text)
    plain, content = _replace_variants(text)
    shape = content.translate(_DIGITS_TO_ZERO)
    for number in _NUMBER_KINDS:
        if number.shape.search(shape):
            for pattern in number.patterns:
                text, plain = _mask_numbers(pattern, number.placeholder, text, plain)
    return text


# --- e-mail ------------------------------------------------------------------------------------------------

_COMMON_DOMAINS = (
    *("com", "net", "org", "edu", "gov", "info", "biz", "io", "ai", "me", "tv", "co"),
    *("kr", "jp", "cn", "tw", "us", "uk", "de", "eu", "fr"),
)
_AFTER_COMMON_DOMAIN = "|".join(rf"(?<=\.{domain})" for domain in _COMMON_DOMAINS)
_DOMAIN = re.compile(
    r"@((?:[A-Za-z0-9][A-Za-z0-9-]{0,62}\.){1,8}[A-Za-z]{2,24})(?![A-Za-z0-9]|\.\w)"
    rf"(?:(?![_(@-])|(?=[_(@-]+ ?[^\x00-\x7f])|{_AFTER_COMMON_DOMAIN})",
    re.ASCII,
)
"""`w@x.sum(` is a matrix product: before a parenthesis, hyphen, underscore or @ the domain must be a common one, or
Korean must follow, as in the last line of news, 기자 hong@site.co.kr(끝)."""
_LOCAL_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}\Z")


def _mask_emails(text: str) -> str:
    plain = text.replace("＠", "@").replace("．", ".")
    parts, end = [], 0
    for domain in _DOMAIN.finditer(plain):
        local = _LOCAL_PART.search(plain, max(end, domain.start() - 64), domain.start())
        if local and local[0] != "git":
            parts += [text[end : local.start()], "email@example.com"]
            end = domain.end()
    return "".join([*parts, text[end:]])


# --- numbers -----------------------------------------------------------------------------------------------

_VARIANTS = {
    **dict(zip("０１２３４５６７８９（）＋．", "0123456789()+.", strict=True)),
    **dict.fromkeys("\xad\u2043\u2212\u2500\u30fc\u3161\ufe58\ufe63\uff0d", "-"),
    **dict.fromkeys(map(chr, range(0x2010, 0x2016)), "-"),
    **dict.fromkeys("\xb7\u2027\u30fb\u318d", "."),
    **dict.fromkeys("\xa0\u202f\u205f\u2060\u3000\ufeff", " "),
    **dict.fromkeys(map(chr, range(0x2002, 0x200C)), " "),
}
"""Full-width characters, dashes (and letters that look like one, ㅡ and ー), middle dots and spaces of any width,
and what they are in a number."""
_VARIANT = re.compile(f"[{''.join(_VARIANTS)}]")
_DIGITS_TO_ZERO = bytes(ord("0") if chr(byte) in "0123456789" else byte for byte in range(256))


def _compile_variants(first_byte: int) -> re.Pattern[bytes]:
    """Compiles the variants whose UTF-8 begins with `first_byte`, before a digit."""
    rests = [re.escape(code[1:]) for code in map(str.encode, _VARIANTS) if code[0] == first_byte]
    return re.compile(b"\\x%02x(?:%b) ?(?:[0-9]|\xef\xbc[\x90-\x99])" % (first_byte, b"|".join(rests)))


_VARIANTS_IN_NUMBERS = [
    (byte, _compile_variants(byte)) for byte in sorted({character.encode()[0] for character in _VARIANTS})
]


def _replace_variants(text: str) -> tuple[str, bytes]:
    """Returns a copy of the same length with plain digits, hyphens and spaces, or `text` itself, and the UTF-8."""
    content = text.encode("utf-8", "surrogatepass")
    if text.isascii() or not any(
        byte in content and pattern.search(content) for byte, pattern in _VARIANTS_IN_NUMBERS
    ):
        return text, content
    plain = _VARIANT.sub(lambda match: _VARIANTS[match[0]], text)
    return plain, plain.encode("utf-8", "surrogatepass")


def _mask_numbers(
    pattern: re.Pattern[str], placeholder: Placeholder, text: str, plain: str
) -> tuple[str, str]:
    """Masks in `text` what the pattern matches in `plain`, its copy of the same length; returns both masked."""
    if plain is text:
        text = pattern.sub(placeholder, text)
        return text, text
    parts, plain_parts, end = [], [], 0
    for match in pattern.finditer(plain):
        masked = placeholder(match) if callable(placeholder) else placeholder
        if masked != match[0]:
            parts += [text[end : match.start()], masked]
            plain_parts += [plain[end : match.start()], masked]
            end = match.end()
    return "".join([*parts, text[end:]]), "".join([*plain_parts, plain[end:]])


_NUMBER_END = r"(?![A-Za-z0-9_]|[.-][0-9])"
_HYPHEN = " ?- ?"
_SEPARATOR = "(?: ?[-.] ?| )"


def _compile_number_pattern(first: str, rest: str) -> re.Pattern[str]:
    """Compiles a number that is not part of a longer one; begins with the first character, so that re is fast."""
    before = rf"(?<![A-Za-z0-9_]{first})(?<![0-9][.-]{first})"
    return re.compile(rf"{first}{before}(?:{rest}){_NUMBER_END}")


_RESIDENT = _compile_number_pattern(
    "[0-9]", rf"[0-9](?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01]){_HYPHEN}[1-8][0-9]{{6}}"
)
_CARD = _compile_number_pattern("[3-69]", rf"[0-9]{{3}}({_HYPHEN}| )[0-9]{{4}}\1[0-9]{{4}}\1[0-9]{{4}}")
_PHONE_IN_PARENTHESES = re.compile(
    rf"\(0(?:1[016-9]|2|[3-6][1-5]|70)\){_SEPARATOR}?[0-9]{{3,4}}{_SEPARATOR}[0-9]{{4}}{_NUMBER_END}"
)
_PHONE = _compile_number_pattern(
    "0",
    # eleven digits 0 and 1 are a binary number
    rf"(?![01]{{10}})10(?:{_SEPARATOR}|\) ?)?[0-9]{{4}}{_SEPARATOR}?[0-9]{{4}}"
    rf"|1[16-9](?:(\.| |{_HYPHEN})[0-9]{{3,4}}\1|\) ?[0-9]{{3,4}}{_SEPARATOR})[0-9]{{4}}"
    rf"|(?:2|[3-6][1-5]|70)(?:(\.|{_HYPHEN})[0-9]{{3,4}}\2|\) ?[0-9]{{3,4}}{_SEPARATOR})[0-9]{{4}}"
    # with dots it is an entry of a collation table
    rf"|50[0-9](?:{_HYPHEN}[0-9]{{3,4}}{_HYPHEN}|\) ?[0-9]{{3,4}}{_SEPARATOR})[0-9]{{4}}",
)
_MOBILE_OR_LANDLINE = "(?:1[016-9]|2|[3-6][1-5]|70)"
_PHONE_WITHOUT_PLUS = _compile_number_pattern(
    "8",
    rf"2(?:(?:{_HYPHEN}|\) ?)0?{_MOBILE_OR_LANDLINE}{_HYPHEN}[0-9]{{3,4}}{_HYPHEN}| 10 [0-9]{{4}} )[0-9]{{4}}",
)
_PHONE_INTERNATIONAL = _compile_number_pattern(
    r"\+",
    rf"82\)?{_SEPARATOR}?(?:\(0\)|0)?{_SEPARATOR}?{_MOBILE_OR_LANDLINE}{_SEPARATOR}?"
    rf"[0-9]{{3,4}}{_SEPARATOR}?[0-9]{{4}}",
)
_IPV4 = _compile_number_pattern("[0-9]", r"[0-9]{0,2}(?:\.[0-9]{1,3}){3}")
_IPV6 = re.compile(
    r"[23](?<![\w.].)(?<![0-9a-f:]:.)[0-9a-f]{3}(?:::?[0-9a-f]{1,4}){1,7}(?:::)?(?!\w|:[0-9a-f:])",
    re.ASCII | re.IGNORECASE,
)


def _mask_card(match: re.Match[str]) -> str:
    digits = [int(digit) for digit in match[0] if digit.isdigit()]
    doubled = [2 * digit - 9 * (digit > 4) for digit in digits[::2]]
    return match[0] if (sum(doubled) + sum(digits[1::2])) % 10 else "0000-0000-0000-0000"


def _mask_ipv4(match: re.Match[str]) -> str:
    lengths = [len(group) for group in match[0].split(".")]
    is_long = sum(lengths) >= 8 and max(lengths) == 3
    return "192.0.2.1" if is_long and _is_public(match[0]) else match[0]


def _mask_ipv6(match: re.Match[str]) -> str:
    return "2001:db8::1" if _is_public(match[0]) else match[0]


def _is_public(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return parsed.is_global and not parsed.is_multicast


class _NumberKind(NamedTuple):
    """A kind of number. Its expensive patterns are applied only to texts in which its shape occurs."""

    shape: re.Pattern[bytes]
    """Searched in the UTF-8 of a text with every digit replaced by 0; begins with a literal, which is fast."""
    patterns: tuple[re.Pattern[str], ...]
    placeholder: Placeholder


_NUMBER_KINDS = (
    _NumberKind(re.compile(rb"000000 ?- ?0000000"), (_RESIDENT,), "000000-0000000"),
    _NumberKind(re.compile(rb"0000( ?- ?| )0000\1"), (_CARD,), _mask_card),
    _NumberKind(re.compile(rb"\+00"), (_PHONE_INTERNATIONAL,), "010-0000-0000"),
    _NumberKind(re.compile(rb"\(00{1,2}\)[-. ]{0,3}000"), (_PHONE_IN_PARENTHESES,), "010-0000-0000"),
    _NumberKind(re.compile(rb"000[-. ]{0,3}0000"), (_PHONE, _PHONE_WITHOUT_PLUS), "010-0000-0000"),
    _NumberKind(re.compile(rb"0\.0{1,3}\.0{1,3}\.0"), (_IPV4,), _mask_ipv4),
    _NumberKind(re.compile(rb"0[0a-fA-F]{3}:[0a-fA-F:]{2}"), (_IPV6,), _mask_ipv6),
)
