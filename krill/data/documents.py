"""The documents that may be trained on: cleaned, long enough, each text once.

    source → clean → min_chars → exact duplicates

What is dropped is counted per rule.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

from krill.config.schema import Data
from krill.config.signature import signature
from krill.data.cleaning import clean
from krill.data.dedup import Duplicates, digest_of
from krill.data.source import Source

VERSION = 1
"""Part of every signature: raised when the rules in this room change what they make."""


RULES = {"min_chars", "min_tokens", "validation_fraction"}


class Usable(NamedTuple):
    """A cleaned document that is long enough and no duplicate."""

    text: str
    source: int
    """Index of its source."""
    digest: bytes
    """16 bytes; decides its split."""


class Dropped:
    """Documents and UTF-8 bytes that each rule dropped."""

    def __init__(self) -> None:
        self.rules: defaultdict[str, dict[str, int]] = defaultdict(
            lambda: {"documents": 0, "bytes": 0, "tokens": 0}
        )

    def add(self, rule: str, text: str, tokens: int = 0) -> None:
        """Count one document; `tokens` where it was encoded before it was dropped."""
        counts = self.rules[rule]
        counts["documents"] += 1
        counts["bytes"] += len(text.encode())
        counts["tokens"] += tokens

    @property
    def tokens(self) -> int:
        """Tokens of all documents that were dropped after encoding."""
        return sum(counts["tokens"] for counts in self.rules.values())


def usable_documents(source: Source, data: Data, dropped: Dropped) -> Iterator[Usable]:
    """Yield what may be trained on: cleaned, at least min_chars long, each text once (its first copy)."""
    indices = {name: index for index, name in enumerate(source.names)}
    duplicates = Duplicates()
    for document in source.documents():
        text = clean(document.text)
        if len(text) < max(1, data.min_chars):
            dropped.add("min_chars" if text else "empty", text)
            continue
        digest = digest_of(text)
        if duplicates.saw(digest):
            dropped.add("duplicate", text)
            continue
        yield Usable(text, indices[document.source], digest)


def data_signature(data: Data, fingerprint: Any) -> str:
    """Signature of the text: rules and content. Where files lie does not count."""
    return signature("data", VERSION, data.model_dump(include=RULES), fingerprint)
