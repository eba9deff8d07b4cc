"""Masks personal data: replaces e-mail and IP addresses, phone, resident and card numbers by placeholders.

| kind | matches | placeholder |
|---|---|---|
| e-mail | all but git@ and the reserved example domains (RFC 2606) | email@example.com |
| phone | Korean: 010-1234-5678, 01012345678, 02-123-4567, (031) 123-4567, +82 10 1234 5678 | 010-0000-0000 |
| resident number | 900101-1234567: a date, a hyphen, then a digit from 1 to 8 | 000000-0000000 |
| card | 16 digits in groups of four by hyphens or spaces, with a valid check digit (Luhn) | 0000-0000-0000-0000 |
| IPv4 | public, with at least eight digits: 1.2.3.4 is more often a version than an address | 192.0.2.1 |
| IPv6 | public (2000::/3) | 2001:db8::1 |

Not masked, because too many other numbers look alike: resident numbers without the hyphen, landlines without a
separator, service numbers (1588-0000), bank accounts. FineWeb (Penedo et al. 2024) masks e-mail and IPv4 likewise.

Masking is idempotent: a placeholder matches no kind but its own.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import NamedTuple

VERSION = 1
"""Part of the identity of masked text; incremented when the masked text changes."""


def mask_pii(text: str) -> str:
    """Returns `text` with personal data replaced by placeholders."""
    if "@" in text:
        text = _mask_emails(text)
    shape = text.encode("utf-8", "surrogatepass").translate(_DIGITS_TO_ZERO)
    for number in _NUMBER_KINDS:
        if number.shape.search(shape):
            text = number.pattern.sub(number.placeholder, text)
    return text


# --- e-mail ------------------------------------------------------------------------------------------------

_DOMAIN = re.compile(r"@((?:[A-Za-z0-9][A-Za-z0-9-]{0,62}\.){1,8}[A-Za-z]{2,24})(?![\w(@-]|\.\w)", re.ASCII)
"""Not followed by a parenthesis: `w@x.sum()` is a matrix product."""
_LOCAL_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}\Z")
_EXAMPLE_DOMAIN = re.compile(r"(?:.*\.)?example\.(?:com|org|net)\Z", re.IGNORECASE)


def _mask_emails(text: str) -> str:
    parts, end = [], 0
    for domain in _DOMAIN.finditer(text):
        local = _LOCAL_PART.search(text, max(end, domain.start() - 64), domain.start())
        if local and local[0] != "git" and not _EXAMPLE_DOMAIN.match(domain[1]):
            parts += [text[end : local.start()], "email@example.com"]
            end = domain.end()
    return "".join([*parts, text[end:]])


# --- numbers -----------------------------------------------------------------------------------------------

_DIGITS_TO_ZERO = bytes(ord("0") if chr(byte) in "0123456789" else byte for byte in range(256))
_NUMBER_END = r"(?![A-Za-z0-9_]|[.-][0-9])"


def _compile_number_pattern(first: str, rest: str) -> re.Pattern[str]:
    """Compiles a number that is not part of a longer one; begins with the first character, so that re is fast."""
    before = rf"(?<![A-Za-z0-9_]{first})(?<![0-9][.-]{first})"
    return re.compile(rf"{first}{before}(?:{rest}){_NUMBER_END}")


_RESIDENT = _compile_number_pattern(
    "[0-9]", r"[0-9](?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])-[1-8][0-9]{6}"
)
_CARD = _compile_number_pattern("[3-69]", r"[0-9]{3}([- ])[0-9]{4}\1[0-9]{4}\1[0-9]{4}")
_PHONE_IN_PARENTHESES = re.compile(
    rf"\(0(?:1[016-9]|2|[3-6][1-5]|70)\)[-. ]?[0-9]{{3,4}}[-. ][0-9]{{4}}{_NUMBER_END}"
)
_PHONE = _compile_number_pattern(
    "0",
    r"(?![01]{10})10[-. ]?[0-9]{4}[-. ]?[0-9]{4}"  # eleven digits 0 and 1 are a binary number
    r"|1[16-9]([-. ])[0-9]{3,4}\1[0-9]{4}"
    r"|(?:2|[3-6][1-5]|70|50[0-9])(?:([-.])[0-9]{3,4}\2|\)[ ]?[0-9]{3,4}[-. ])[0-9]{4}",
)
_PHONE_INTERNATIONAL = _compile_number_pattern(
    r"\+", r"82[-. ]?(?:\(0\)|0)?[-. ]?(?:1[016-9]|2|[3-6][1-5]|70)[-. ]?[0-9]{3,4}[-. ]?[0-9]{4}"
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
    return "192.0.2.1" if len(match[0]) >= 8 + 3 and _is_public(match[0]) else match[0]


def _mask_ipv6(match: re.Match[str]) -> str:
    return "2001:db8::1" if _is_public(match[0]) else match[0]


def _is_public(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return parsed.is_global and not parsed.is_multicast


class _NumberKind(NamedTuple):
    """A kind of number. Its expensive pattern is applied only to texts in which its shape occurs."""

    shape: re.Pattern[bytes]
    """Searched in the UTF-8 of a text with every digit replaced by 0; begins with a literal, which is fast."""
    pattern: re.Pattern[str]
    placeholder: str | Callable[[re.Match[str]], str]


_NUMBER_KINDS = (
    _NumberKind(re.compile(rb"000000-0000000"), _RESIDENT, "000000-0000000"),
    _NumberKind(re.compile(rb"0000([- ])0000\1"), _CARD, _mask_card),
    _NumberKind(re.compile(rb"\+00"), _PHONE_INTERNATIONAL, "010-0000-0000"),
    _NumberKind(re.compile(rb"\(00{1,2}\)[-. ]?000"), _PHONE_IN_PARENTHESES, "010-0000-0000"),
    _NumberKind(re.compile(rb"000[-. ]?0000"), _PHONE, "010-0000-0000"),
    _NumberKind(re.compile(rb"0\.0{1,3}\.0{1,3}\.0"), _IPV4, _mask_ipv4),
    _NumberKind(re.compile(rb"0[0a-fA-F]{3}:[0a-fA-F:]{2}"), _IPV6, _mask_ipv6),
)
