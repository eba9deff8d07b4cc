"""The documents that may be trained on: cleaned, kept by every rule, each text once.

    source → clean → min_chars → filters → exact duplicates

What is dropped is counted per rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from krill.config.schema import Data
from krill.config.signature import signature
from krill.sources.source import EXAMPLES, Document
from krill.text import cleaning, filters, near
from krill.text.dedup import Duplicates, digest_of

VERSION = 2
"""Part of every signature: raised when the rules in this room change what they make."""

EXCERPT = 80
"""Characters of a dropped document that are shown."""


class Usable(NamedTuple):
    """A cleaned document that is kept by every rule and no duplicate."""

    text: str
    content: bytes
    """The text's UTF-8."""
    digest: bytes
    """16 bytes; decides its split."""
    place: tuple[int, int]
    """Where it was found."""


class Dropped:
    """Documents, UTF-8 bytes and tokens that each rule dropped, with a few examples."""

    def __init__(self) -> None:
        self.rules: dict[str, dict[str, Any]] = {}
        """Rule → documents, bytes, tokens (of those that were encoded before they were dropped), examples."""

    def add(self, rule: str, size: int, tokens: int = 0, documents: int = 1) -> None:
        """Count documents of `size` bytes and, where they were encoded, `tokens` together."""
        counts = self._counts(rule)
        counts["documents"] += documents
        counts["bytes"] += size
        counts["tokens"] += tokens

    def wants_example(self, rule: str) -> bool:
        """Whether another example of the rule is wanted."""
        return len(self._counts(rule)["examples"]) < EXAMPLES

    def show(self, rule: str, place: str, text: str) -> None:
        """Keep a document as an example."""
        excerpt = " ".join(text[: 2 * EXCERPT].split())[:EXCERPT]
        self._counts(rule)["examples"].append({"place": place, "text": excerpt})

    def merge(self, rules: dict[str, dict[str, Any]]) -> None:
        """Add what a later part dropped."""
        for rule, more in rules.items():
            counts = self._counts(rule)
            for key in ("documents", "bytes", "tokens"):
                counts[key] += more[key]
            counts["examples"] = (counts["examples"] + more["examples"])[:EXAMPLES]

    @property
    def tokens(self) -> int:
        """Tokens of all documents that were dropped after encoding."""
        return sum(counts["tokens"] for counts in self.rules.values())

    def _counts(self, rule: str) -> dict[str, Any]:
        empty: dict[str, Any] = {"documents": 0, "bytes": 0, "tokens": 0, "examples": []}
        return self.rules.setdefault(rule, empty)


class Rules:
    """What is done to a text and what it must pass, made ready once."""

    def __init__(self, data: Data) -> None:
        self.clean = cleaning.cleaner(data)
        """What is done to every text."""
        self._min_chars = max(1, data.min_chars)
        self._filters = filters.Filters(data.filters)

    def judge(self, text: str) -> tuple[str, str | None]:
        """The cleaned text, and the rule that drops it, if one does."""
        text = self.clean(text)
        return text, self.dropped_by(text)

    def dropped_by(self, text: str) -> str | None:
        """The rule that drops a cleaned text, if one does."""
        if len(text) < self._min_chars:
            return "min_chars" if text else "empty"
        return self._filters.dropped_by(text)


def usable_documents(
    documents: Iterable[Document],
    rules: Rules,
    duplicates: Duplicates,
    dropped: Dropped,
    spell: Callable[[tuple[int, int]], str],
) -> Iterator[Usable]:
    """Yield what may be trained on, each text once (its first copy)."""
    for document in documents:
        text, rule = rules.judge(document.text)
        content = text.encode()
        if rule is None:
            digest = digest_of(content)
            if not duplicates.saw(digest):
                yield Usable(text, content, digest, document.place)
                continue
            rule = "duplicate"
        dropped.add(rule, len(content))
        if dropped.wants_example(rule):
            dropped.show(rule, spell(document.place), text)


def text_rules(data: Data) -> dict[str, Any]:
    """What determines which texts there are and how they read; JSON. The tokenizer is trained on them."""
    plain = data.model_dump(include={"min_chars", "validation_fraction"})
    return {**plain, "cleaning": cleaning.identity(data), "filters": filters.identity(data.filters)}


def data_rules(data: Data) -> dict[str, Any]:
    """Every rule that determines the stored documents; JSON."""
    return {
        **text_rules(data),
        **data.model_dump(include={"min_tokens", "max_tokens"}),
        "near": near.identity(data.near),
    }


def data_signature(data: Data, fingerprint: Any) -> str:
    """Signature of the text: rules and content. Where files lie does not count."""
    return signature("data", VERSION, data_rules(data), fingerprint)
