"""What a source of text is: documents in a fixed order, a fingerprint, and what could not be read.

Every source streams: memory does not grow with the corpus. A record that cannot be read (a cut line, invalid
UTF-8, no text) costs that record only: it is skipped, counted by reason in `skipped`, and the first few are
named in a warning, file and line. What concerns a whole file (missing, empty, no column) is a UsageError.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

log = logging.getLogger("krill")

WARNINGS = 3
"""So many skipped records are named per reason; all are counted."""


class Document(NamedTuple):
    """One text as it was found."""

    text: str
    source: str
    """One of the source's `names`."""


class Source(ABC):
    """Documents in a fixed order. `skipped` counts, by reason, the records that gave none."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        """What the documents' sources are called; no two alike."""
        self.skipped: Counter[str] = Counter()

    @abstractmethod
    def fingerprint(self) -> Any:
        """JSON value that changes when the text does."""

    @abstractmethod
    def documents(self) -> Iterator[Document]:
        """Yield the documents; each call begins anew. Raises UsageError for a file that gives none."""

    def skip(self, place: str, reason: str) -> None:
        """Count a record that cannot be read."""
        self.skipped[reason] += 1
        if self.skipped[reason] <= WARNINGS:
            log.warning("%s: %s; skipped", place, reason)
        elif self.skipped[reason] == WARNINGS + 1:
            log.warning("%s: further records are counted, not named", reason)

    def text(self, record: Any, column: str, place: str) -> str | None:
        """The text of a record; None, counted, if it has none."""
        if not isinstance(record, dict):
            self.skip(place, "not a JSON object")
        elif record.get(column) is None:
            self.skip(place, f"{column!r} is null" if column in record else f"no {column!r}")
        elif not isinstance(record[column], str):
            self.skip(place, f"{column!r} is not text but {type(record[column]).__name__}")
        else:
            return record[column]
        return None


def no_column(where: str, column: str, columns: list[str], key: str = "data.text_column") -> str:
    return f"{where}: no column {column!r}; it has {', '.join(columns)}. Name the one with the text: {key}="


def distinct(names: list[str], full: list[str]) -> list[str]:
    """Short names where they differ, else the full ones, numbered where even those are alike."""
    chosen = [name if names.count(name) == 1 else other for name, other in zip(names, full, strict=True)]
    return [name if chosen.count(name) == 1 else f"{name} ({index})" for index, name in enumerate(chosen, 1)]
