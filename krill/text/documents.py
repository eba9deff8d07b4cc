"""The documents that may be trained on: cleaned, kept by every rule, each text once.

    source → clean → min_chars → filters → exact duplicates

What is dropped is counted per rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from krill.config.schema import DataConfig
from krill.config.signature import compute_signature
from krill.sources.source import MAX_SKIPPED_EXAMPLES, Document
from krill.text import cleaning, filters, minhash
from krill.text.dedup import SeenDigests, hash_text

VERSION = 2
"""Part of every signature: raised when the rules in this room change what they make."""

EXAMPLE_CHARACTERS = 80
"""Characters of a dropped document that are shown."""


class KeptDocument(NamedTuple):
    """A cleaned document that is kept by every rule and no duplicate."""

    text: str
    content: bytes
    """The text's UTF-8."""
    digest: bytes
    """16 bytes; decides its split."""
    location: tuple[int, int]
    """Where it was found."""


class DropStats:
    """Documents, UTF-8 bytes and tokens that each rule dropped, with a few examples."""

    def __init__(self) -> None:
        self.by_rule: dict[str, dict[str, Any]] = {}
        """Rule → documents, bytes, tokens (of those that were encoded before they were dropped), examples."""

    def add(self, rule: str, size: int, tokens: int = 0, documents: int = 1) -> None:
        """Count documents of `size` bytes and, where they were encoded, `tokens` together."""
        counts = self._get_counts(rule)
        counts["documents"] += documents
        counts["bytes"] += size
        counts["tokens"] += tokens

    def should_add_example(self, rule: str) -> bool:
        """Whether another example of the rule is wanted."""
        return len(self._get_counts(rule)["examples"]) < MAX_SKIPPED_EXAMPLES

    def add_example(self, rule: str, place: str, text: str) -> None:
        """Keep a document as an example."""
        excerpt = " ".join(text[: 2 * EXAMPLE_CHARACTERS].split())[:EXAMPLE_CHARACTERS]
        self._get_counts(rule)["examples"].append({"place": place, "text": excerpt})

    def merge(self, rules: dict[str, dict[str, Any]]) -> None:
        """Add what a later part dropped."""
        for rule, more in rules.items():
            counts = self._get_counts(rule)
            for key in ("documents", "bytes", "tokens"):
                counts[key] += more[key]
            counts["examples"] = (counts["examples"] + more["examples"])[:MAX_SKIPPED_EXAMPLES]

    @property
    def tokens(self) -> int:
        """Tokens of all documents that were dropped after encoding."""
        return sum(counts["tokens"] for counts in self.by_rule.values())

    def _get_counts(self, rule: str) -> dict[str, Any]:
        empty: dict[str, Any] = {"documents": 0, "bytes": 0, "tokens": 0, "examples": []}
        return self.by_rule.setdefault(rule, empty)


class DocumentRules:
    """What is done to a text and what it must pass, made ready once."""

    def __init__(self, data: DataConfig) -> None:
        self.clean = cleaning.build_cleaner(data)
        """What is done to every text."""
        self._min_chars = max(1, data.min_chars)
        self._filters = filters.Filters(data.filters)

    def apply_rules(self, text: str) -> tuple[str, str | None]:
        """The cleaned text, and the rule that drops it, if one does."""
        text = self.clean(text)
        return text, self.find_dropping_rule(text)

    def find_dropping_rule(self, text: str) -> str | None:
        """The rule that drops a cleaned text, if one does."""
        if len(text) < self._min_chars:
            return "min_chars" if text else "empty"
        return self._filters.find_dropping_rule(text)


def iterate_kept_documents(
    documents: Iterable[Document],
    rules: DocumentRules,
    duplicates: SeenDigests,
    dropped: DropStats,
    spell: Callable[[tuple[int, int]], str],
) -> Iterator[KeptDocument]:
    """Yield what may be trained on, each text once (its first copy)."""
    for document in documents:
        text, rule = rules.apply_rules(document.text)
        content = text.encode()
        if rule is None:
            digest = hash_text(content)
            if not duplicates.check_and_add(digest):
                yield KeptDocument(text, content, digest, document.location)
                continue
            rule = "duplicate"
        dropped.add(rule, len(content))
        if dropped.should_add_example(rule):
            dropped.add_example(rule, spell(document.location), text)


def collect_text_rules(data: DataConfig) -> dict[str, Any]:
    """What determines which texts there are and how they read; JSON. The tokenizer is trained on them."""
    plain = data.model_dump(include={"min_chars", "validation_fraction"})
    return {
        **plain,
        "cleaning": cleaning.compute_cleaning_identity(data),
        "filters": filters.compute_filters_identity(data.filters),
    }


def collect_data_rules(data: DataConfig) -> dict[str, Any]:
    """Every rule that determines the stored documents; JSON."""
    return {
        **collect_text_rules(data),
        **data.model_dump(include={"min_tokens", "max_tokens"}),
        "near": minhash.compute_minhash_identity(data.minhash),
    }


def compute_data_signature(data: DataConfig, fingerprint: Any) -> str:
    """Signature of the text: rules and content. Where files lie does not count."""
    return compute_signature("data", VERSION, collect_data_rules(data), fingerprint)
