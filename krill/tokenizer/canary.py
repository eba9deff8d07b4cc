"""Notices that a tokenizer gives other ids than before, by a canary: a text that is stored with its ids.

The files of a tokenizer do not determine its ids alone: an upgrade of the library that reads them can split the same
text differently, and a model trained on the old ids then reads and writes garbage without an error (transformers
#45701, allenai/open-instruct #1896: 9.8 % more tokens). The canary is stored in the record.json of a tokenizer, which
its copies in checkpoints and models have too, and in the manifest of a token store.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tokenizers

from krill.errors import KrillError

CANARY_TEXT = (
    "Don't WE'LL they've; x=1234567.89 +-= 2026-01-31 100% #tag @user _snake_case camelCase HTTPServer\n"
    "\tdef f(a, b):\n        return  a**b   # two  spaces\r\n\r\n\n"
    "한국어 문장은 조사와 어미가 되풀이된다ㅋㅋㅋ. 값은 3만원(₩30,000)입니다!  漢字かなカナ “따옴표”…\n"
    "\u1112\u1161\u11ab\u1100\u116e\u11a8 cafe\u0301 café naïve ﬁ ½ ² Ⅷ İ ß Привет γειά עברית عربي नमस्ते "
    "👩‍👩‍👧 🇰🇷 \u00a0\u3000\u200b\ufeff\u2028 <|x|> https://a.b/c?d=e&f \\n ---- ==== !!! "
)
"""Contractions, numbers, identifiers, runs of white space, composed and decomposed characters, several scripts and
emoji: what split patterns and normalizers of tokenizers treat differently."""


def build_canary(backend: tokenizers.Tokenizer) -> dict[str, Any]:
    """Returns the canary of a tokenizer: the text, its ids without bos and eos, and the version of tokenizers."""
    return {
        "text": CANARY_TEXT,
        "ids": encode_canary(backend, CANARY_TEXT),
        "tokenizers": tokenizers.__version__,
    }


def encode_canary(backend: tokenizers.Tokenizer, text: str) -> list[int]:
    """Returns the ids of a canary's text, in a tokenizer without truncation and padding."""
    truncation, padding = backend.truncation, backend.padding
    backend.no_truncation()
    backend.no_padding()
    ids: list[int] = backend.encode(text, add_special_tokens=False).ids
    if truncation is not None:
        backend.enable_truncation(**truncation)
    if padding is not None:
        backend.enable_padding(**padding)
    return ids


def check_canary(canary: Mapping[str, Any], backend: tokenizers.Tokenizer, label: str, remedy: str) -> None:
    """Raises KrillError, which ends with `remedy`, if `backend` gives other ids than the canary of `label` has."""
    ids, expected = encode_canary(backend, canary["text"]), canary["ids"]
    if ids == expected:
        return
    same = next(
        (index for index, (a, b) in enumerate(zip(ids, expected, strict=False)) if a != b),
        min(len(ids), len(expected)),
    )
    before = backend.decode(expected[:same], skip_special_tokens=False)[-20:]
    earlier = f" by tokenizers {canary['tokenizers']}" if "tokenizers" in canary else ""
    raise KrillError(
        f"{label}: tokenizers {tokenizers.__version__} gives other ids than it was made with{earlier}: "
        f"{len(ids)} instead of {len(expected)} for the same text, different after {before!r}. A model would read "
        f"and write garbage with them. {remedy}"
    )
