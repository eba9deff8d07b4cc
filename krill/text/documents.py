"""Selects the documents to train on: cleaned, kept by every rule, without exact duplicates.

    source → clean → min_chars → filters → exact duplicates

Dropped documents are counted per rule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from krill.config.schema import DataConfig
from krill.config.signature import compute_signature
from krill.sources.source import MAX_SKIPPED_EXAMPLES, Document
from krill.text import cleaning, filters, minhash
from krill.text.cleaning import compose
from krill.text.dedup import SeenDigests, hash_text

VERSION = 3
"""Part of every signature; incremented when a change in krill.text changes the resulting documents."""

EXAMPLE_CHARACTERS = 80
"""The length of the excerpt of a dropped document."""


class KeptDocument(NamedTuple):
    """A cleaned document that every rule keeps and that is not a duplicate."""

    text: str
    content: bytes
    """The text's UTF-8."""
    digest: bytes
    """Hash of the text in NFC, 16 bytes; determines the split."""
    location: tuple[int, int]
    """File and record in the part of its source."""


class DropStats:
    """Counts the documents, UTF-8 bytes and tokens that each rule dropped, and keeps a few examples."""

    def __init__(self) -> None:
        self.by_rule: dict[str, dict[str, Any]] = {}
        """Rule → documents, bytes, tokens (of documents that were encoded before they were dropped), examples."""

    def add(self, rule: str, size: int, tokens: int = 0, documents: int = 1) -> None:
        """Counts `documents` of `size` bytes and, where they were encoded, `tokens` in total."""
        counts = self._get_counts(rule)
        counts["documents"] += documents
        counts["bytes"] += size
        counts["tokens"] += tokens

    def should_add_example(self, rule: str) -> bool:
        """Returns whether the rule has fewer than the maximum number of examples."""
        return len(self._get_counts(rule)["examples"]) < MAX_SKIPPED_EXAMPLES

    def add_example(self, rule: str, location: str, text: str) -> None:
        """Adds the beginning of a dropped document as an example."""
        excerpt = " ".join(text[: 2 * EXAMPLE_CHARACTERS].split())[:EXAMPLE_CHARACTERS]
        self._get_counts(rule)["examples"].append({"place": location, "text": excerpt})

    def merge(self, rules: dict[str, dict[str, Any]]) -> None:
        """Adds the counts and examples of a later part."""
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
    """The cleaning and the rules of a configuration, built once and applied to every text."""

    def __init__(self, data: DataConfig) -> None:
        self.clean = cleaning.build_cleaner(data)
        """Cleans one text."""
        self._min_chars = max(1, data.min_chars)
        self._filters = filters.Filters(data.filters)

    def find_dropping_rule(self, text: str) -> str | None:
        """Returns the name of the rule that drops a cleaned text, which is given in NFC, or None."""
        if len(text) < self._min_chars:
            return "min_chars" if text else "empty"
        return self._filters.find_dropping_rule(text)


def iterate_kept_documents(
    documents: Iterable[Document],
    rules: DocumentRules,
    duplicates: SeenDigests,
    dropped: DropStats,
    read_counts: Counter[str],
    describe_location: Callable[[tuple[int, int]], str],
) -> Iterator[KeptDocument]:
    """Yields the documents to train on, each text once (its first copy); counts the others in `dropped`.

    Adds to `read_counts` the number of all documents, and of the decomposed ones, which are shorter in NFC.
    """
    for document in documents:
        text = rules.clean(document.text)
        composed = compose(text)
        read_counts["documents"] += 1
        if len(composed) < len(text):
            read_counts["decomposed"] += 1
        rule = rules.find_dropping_rule(composed)
        content = text.encode()
        if rule is None:
            digest = hash_text(content if composed is text else composed.encode())
            if not duplicates.check_and_add(digest):
                yield KeptDocument(text, content, digest, document.location)
                continue
            rule = "duplicate"
        dropped.add(rule, len(content))
        if dropped.should_add_example(rule):
            dropped.add_example(rule, describe_location(document.location), text)


def collect_text_rules(data: DataConfig) -> dict[str, Any]:
    """Returns the rules that determine the texts, as JSON. The tokenizer is trained on these texts."""
    thresholds = data.model_dump(include={"min_chars", "validation_fraction"})
    return {
        **thresholds,
        "cleaning": cleaning.compute_cleaning_identity(data),
        "filters": filters.compute_filters_identity(data.filters),
    }


def collect_data_rules(data: DataConfig) -> dict[str, Any]:
    """Returns every rule that determines the stored documents, as JSON."""
    return {
        **collect_text_rules(data),
        **data.model_dump(include={"min_tokens", "max_tokens"}),
        "near": minhash.compute_minhash_identity(data.minhash),
    }


def compute_data_signature(data: DataConfig, fingerprint: Any) -> str:
    """Returns the signature of the text: rules and content, but not the paths of the files."""
    return compute_signature("data", VERSION, collect_data_rules(data), fingerprint)
