"""What a source of text is: documents in a fixed order, cut into parts that are read independently.

Every source streams: memory does not grow with the corpus. A record that cannot be read (a cut line, invalid
UTF-8, no text) costs that record only: it is skipped and counted by reason, and the first few places are kept.
What concerns a whole file (missing, empty, no column) is a UsageError.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

log = logging.getLogger("krill")

MAX_SKIPPED_EXAMPLES = 3
"""So many places are kept per reason; all are counted."""


class Document(NamedTuple):
    """One text as it was found."""

    text: str
    location: tuple[int, int]
    """Which file of the part, which record in it: `Source.spell` makes words of it, where they are wanted."""


class Part(NamedTuple):
    """A slice of a source that is read on its own: by another process, on another machine, after a kill."""

    source: int
    """Index in the source's `names`."""
    span: Any
    """What `Source.read` needs; JSON values that do not depend on where the data lie."""
    size: int
    """Bytes of input (rows, where bytes are not known): shares out the work and measures progress."""


class SkippedRecords:
    """Records that gave no document, counted by reason."""

    def __init__(self) -> None:
        self.reasons: dict[str, dict[str, Any]] = {}
        """Reason → {"records": count, "places": the first few}; JSON."""

    def add(self, reason: str, place: Callable[[], str]) -> None:
        """Count a record; `place` is called if it is among the first few."""
        found = self.reasons.setdefault(reason, {"records": 0, "places": []})
        found["records"] += 1
        if len(found["places"]) < MAX_SKIPPED_EXAMPLES:
            found["places"].append(place())

    def merge(self, reasons: dict[str, dict[str, Any]]) -> None:
        """Add what a later part counted."""
        for reason, more in reasons.items():
            found = self.reasons.setdefault(reason, {"records": 0, "places": []})
            found["records"] += more["records"]
            found["places"] = (found["places"] + more["places"])[:MAX_SKIPPED_EXAMPLES]

    def warn(self) -> None:
        """Tell the first places of each reason, and how many there are."""
        for reason, found in sorted(self.reasons.items()):
            more = found["records"] - len(found["places"])
            places = ", ".join(found["places"]) + (f" and {more:,} more" if more else "")
            log.warning("skipped, %s: %s", reason, places)


class Source(ABC):
    """Documents in a fixed order. Pickles: parts are read by other processes."""

    def __init__(self, names: list[str], weights: list[float] | None = None) -> None:
        self.names = names
        """What the documents' sources are called; no two alike."""
        self.weights = weights or [1.0] * len(names)
        """How often the training documents of each come in an epoch."""

    @cached_property
    def fingerprint(self) -> Any:
        """`compute_fingerprint` as it was when first asked: what the signatures of a run are made of."""
        return self.compute_fingerprint()

    @abstractmethod
    def compute_fingerprint(self) -> Any:
        """Returns a JSON value that changes when the text changes, or what is read of it."""

    @abstractmethod
    def list_parts(self) -> list[Part]:
        """The parts, in order: a function of the content alone, never of workers or shards.

        Together they give each document once. Raises UsageError for a file that gives none.
        """

    @abstractmethod
    def read(self, part: Part, skipped: SkippedRecords) -> Iterator[Document]:
        """Yield the documents of a part; raises UsageError for a file that cannot be used."""

    @abstractmethod
    def describe_location(self, part: Part, place: tuple[int, int]) -> str:
        """A document's place in words, such as a.jsonl:12."""


def compute_part_bytes(total: int) -> int:
    """How much input a part holds: a thousandth of `total` bytes, but 4 to 256 MiB."""
    return min(max(total // 1000, 4 * 2**20), 256 * 2**20)


def sample_evenly(parts: Sequence[Part], count: int) -> Sequence[Part]:
    """At most `count` of the parts, evenly chosen, the first among them."""
    return parts[:: max(1, -(-len(parts) // count))]


def describe_missing_column(
    where: str, column: str, columns: list[str], key: str = "data.text_column"
) -> str:
    return f"{where}: no column {column!r}; it has {', '.join(columns)}. Name the one with the text: {key}="


def disambiguate_names(names: list[str], full: list[str]) -> list[str]:
    """Short names where they differ, else the full ones, numbered where even those are alike."""
    chosen = [name if names.count(name) == 1 else other for name, other in zip(names, full, strict=True)]
    return [name if chosen.count(name) == 1 else f"{name} ({index})" for index, name in enumerate(chosen, 1)]
