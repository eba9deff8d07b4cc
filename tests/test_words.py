"""The prose of krill keeps to the terms of docs/glossary.md and to plain English."""

from __future__ import annotations

import re
import tokenize
from itertools import pairwise
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1]
FOREIGN = re.compile(
    r"\b(a person|person's|persons?'|anew|told|tells|goes on|go on|so many|so much|the dear|dearer|passed over"
    r"|by itself|is no|are no longer there|whoever|wherever it lies|stands for)\b",
    re.IGNORECASE,
)
ALLOWED = re.compile(r"\bthere (is|are) no\b|\bis no longer\b", re.IGNORECASE)
FILES = sorted(
    file
    for folder in ("krill", "conf", "docs")
    for file in (HOUSE / folder).rglob("*")
    if file.suffix in (".py", ".yaml", ".md")
)


@pytest.mark.parametrize("folder", ["krill", "conf", "docs"])
def test_no_word_of_the_old_dialect(folder: str) -> None:
    found = [
        f"{file.relative_to(HOUSE)}:{number}: {line.strip()}"
        for file in FILES
        if file.is_relative_to(HOUSE / folder)
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if FOREIGN.search(ALLOWED.sub("", line))
    ]
    assert found == []


@pytest.mark.parametrize("folder", ["krill", "docs", "benchmarks"])
def test_no_words_run_together_where_a_string_continues_on_the_next_line(folder: str) -> None:
    found = []
    for file in (HOUSE / folder).rglob("*.py"):
        with open(file, "rb") as content:
            tokens = [token for token in tokenize.tokenize(content.readline) if token.type != tokenize.NL]
        found += [
            f"{file.relative_to(HOUSE)}:{following.start[0]}: {first.string} {following.string}"
            for first, following in pairwise(tokens)
            if first.type == following.type == tokenize.STRING
            and re.search(r"(?<!\\)[\w,.;:]$", first.string.strip("'\""))
            and re.match(r"\w", following.string.lstrip("rfbRFB").strip("'\""))
        ]
    assert found == []
