"""The prose of krill keeps to the terms of docs/glossary.md and to plain English."""

from __future__ import annotations

import re
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
